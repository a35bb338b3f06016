"""The column of fused vectors: for each row, its picture and its caption in one vector."""
