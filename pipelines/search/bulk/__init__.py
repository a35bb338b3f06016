"""Bulk search: millions of queries at once, as Ray tasks, into a table of results."""
