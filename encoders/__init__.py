"""Encoders: pictures and text to vectors. Knows torch and transformers; never Ray, Lance or datasets."""
