"""What a table holds, seen from its vectors: a map, clusters, duplicates, outliers, pairs that do not match."""
