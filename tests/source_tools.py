"""Reads a whole corpus for the tests of the sources."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.rows.contract import RECORD_SCHEMA, Columns
from pipelines.sources import Source, open_source
from pipelines.store.storage import Storage


def opened(corpus: object, format: str = "auto", storage: Storage | None = None, **columns: str) -> Source:
    """The source after a round trip through pickle, as workers get it."""
    return open_source(str(corpus), columns=Columns(**columns), storage=storage or Storage(), format=format)


def rows_of(source: Source) -> list[dict[str, Any]]:
    """All records in the order of the shards; the contract's fields start with `@`."""
    copy = pickle.loads(pickle.dumps(source))
    expected = pa.schema([*RECORD_SCHEMA, *source.schema()])
    rows: list[dict[str, Any]] = []
    for shard in source.shards():
        tables = list(copy.read(shard))
        assert all(table.schema.equals(expected) for table in tables)
        for table in tables:
            table.validate(full=True)
        count = sum(table.num_rows for table in tables)
        assert shard.rows in (None, count), "a shard's promised rows are what progress and the ledger count by"
        rows += [row for table in tables for row in table.to_pylist()]
    return rows


def read(corpus: object, format: str = "auto", **columns: str) -> list[dict[str, Any]]:
    return rows_of(opened(corpus, format, **columns))


def column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


def good(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["@reason"] is None]


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
