"""Turns an encoder into a trainable model, and back into a directory: models, tuning, optimiser."""
