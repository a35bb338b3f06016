"""Hard negatives from a table's own vectors: for each pair, what the encoder takes for right and is not."""
