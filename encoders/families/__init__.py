"""Encoders by kind: two-tower families, single towers, packaged towers, and pairs of towers."""
