"""Exact nearest-neighbour search over a table's vector columns, and digests of the rows' contents."""
