"""Contrastive fine-tuning on Ray Train, over the tables that `isthmus embed` writes."""
