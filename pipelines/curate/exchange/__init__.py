"""Tables out to other tools, and embeddings that other tools made into tables."""
