"""The bookkeeping of a table: what its commits settled, and which rejects count."""
