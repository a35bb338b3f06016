"""Cross-encoders, which re-rank the best hits: training and evaluation."""
