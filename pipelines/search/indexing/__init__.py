"""Indexes that keep a promised recall: choice, tuning and measurement."""
