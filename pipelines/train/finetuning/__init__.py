"""Contrastive fine-tuning on Ray Train, from the tables that `isthmus embed` writes."""
