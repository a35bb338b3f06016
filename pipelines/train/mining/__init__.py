"""Hard negatives from a table's own vectors: for each pair, rows that score like a positive but are none."""
