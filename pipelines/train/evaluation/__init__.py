"""Measures of retrieval: exact ranks, metrics with intervals, paired comparison, leakage, zero-shot, reports."""
