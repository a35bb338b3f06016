"""The column of fused vectors: each row's picture and caption in one vector."""
