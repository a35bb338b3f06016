"""One query against one table: composed, fused, reranked by a cross-encoder."""
