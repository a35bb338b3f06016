"""Rows: their columns, the blocks that they travel in, and the pace at which they are made."""
