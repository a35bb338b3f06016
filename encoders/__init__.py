"""Encoders: pictures and text to vectors. This package uses torch and transformers; never Ray, Lance or datasets."""
