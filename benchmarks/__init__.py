"""Measurements: each module is a command, `python -m benchmarks.NAME`, and a figure is a ratio within one run."""
