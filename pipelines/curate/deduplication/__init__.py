"""Rows that say again what another row of the table says: found by content and by vectors, marked, never deleted."""
