"""Curation of tables: duplicates, exploration, exchange with other tools."""
