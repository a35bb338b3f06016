"""Finding rows: indexes, queries, bulk queries, fused vectors, the web page."""
