"""One query against one table: composed, fused, ordered again by a cross-encoder."""
