"""Ray Data, Lance and storage: sources, the exactly-once sink, index and search."""

import os

# Lance warns on standard error about its own future defaults, once a query. Set LANCE_LOG to hear it.
os.environ.setdefault("LANCE_LOG", "error")
