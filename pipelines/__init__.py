"""Ray Data, Lance and storage: sources, the exactly-once sink, index and search."""
