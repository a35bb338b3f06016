"""Maintenance of a table: merges small files, refreshes indexes, removes old versions."""
