"""Cross-encoders, which order the best hits again: trained and evaluated."""
