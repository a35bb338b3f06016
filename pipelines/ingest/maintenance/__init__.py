"""Maintenance of a table: small files merged, indexes refreshed, old versions removed."""
