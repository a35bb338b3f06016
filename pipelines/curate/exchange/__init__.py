"""Exchange: tables exported for other tools, and embeddings of other tools imported as tables."""
