"""Exploration of a table by its vectors: a map, clusters, duplicates, outliers, pairs that do not match."""
