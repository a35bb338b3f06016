"""Deduplication: rows that repeat another row, found by content and by vectors; marked, never deleted."""
