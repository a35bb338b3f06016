"""Benchmarks. Each bench is a command, `python -m benchmarks.NAME`. Its goals are ratios within one run."""
