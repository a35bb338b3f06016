"""Corpora of real pictures, built from packages with open licences."""
