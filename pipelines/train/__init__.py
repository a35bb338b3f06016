"""Learning from tables: mining, fine-tuning, evaluation, cross-encoders."""
