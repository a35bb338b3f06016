"""Encoders by kind: two-tower families, single towers, packaged towers, pairs."""
