"""Training from tables: mining, fine-tuning, evaluation, cross-encoders."""
