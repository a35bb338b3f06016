"""Indexes that keep a promised recall: which one, with which parameters, measured how."""
