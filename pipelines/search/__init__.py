"""Search: indexes, queries, bulk search, fused vectors, the web page."""
