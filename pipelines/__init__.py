"""Ray Data, Lance and storage: sources, the exactly-once sink, index and search."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.search.retrieval.search import OpenTable

# Lance warns on standard error about its own future defaults, once a query. Set LANCE_LOG to hear it.
os.environ.setdefault("LANCE_LOG", "error")


def open_table(
    name: str, *, encoder: str | None = None, original: bool = False, storage_options: dict[str, str] | None = None
) -> OpenTable:
    """Open a table for queries: `open_table("db/products").search(words="red shoes", k=20).to_pandas()`.

    Args:
        name: FOLDER/NAME or s3://BUCKET/FOLDER/NAME, also at a version or tag, NAME@12.
        encoder: a spec that must be the table's own encoder; None takes what the table names.
        original: the table itself, where another was promoted to its place.
        storage_options: how to reach the store.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it was not made by isthmus.
    """
    from pipelines.search.retrieval.search import OpenTable
    from pipelines.store.storage import Storage, TableRef

    table = TableRef.parse(name, Storage.from_options(storage_options or {}), versions=True)
    return OpenTable.open(table, encoder=encoder, original=original)
