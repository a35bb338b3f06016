"""The result of a search: rows with their scores, in several formats."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import pandas
    import polars

SCORE, MATCH, RERANK = "score", "match", "rerank"


@dataclass(frozen=True, kw_only=True)
class Hits:
    """The rows that a search found, best first.

    Attributes:
        rows: `row_id`, `score` (cosine; BM25 for full text; the fused score of several rankings), `match` (probability
            of a match, if the table is calibrated for such a query), `rerank` (score of a cross-encoder; if present,
            the rows are ordered by it), and the columns that were asked for.
        column: the column that was searched; several are joined by " + ".
        exact: whether every row was compared.
        read_pictures: reads the rows of `pictures` from the store.
    """

    rows: pa.Table
    column: str
    exact: bool
    read_pictures: Callable[[], pa.Table] = field(repr=False, compare=False)

    @cached_property
    def pictures(self) -> pa.Table:
        """`caption`, `image_uri` and, if the table has it, `thumbnail` of the same rows, read on first use.

        Raises:
            OSError: the store cannot be read.
        """
        return self.read_pictures()

    def to_arrow(self) -> pa.Table:
        """The rows as an Arrow table."""
        return self.rows

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return self.rows.to_pandas()

    def to_polars(self) -> polars.DataFrame:
        """The rows as a polars DataFrame.

        Raises:
            ModuleNotFoundError: polars is not installed.
        """
        import polars

        return polars.DataFrame(self.rows)

    def to_list(self) -> list[dict[str, Any]]:
        """The rows as JSON-ready dictionaries; bytes are left out."""
        return plain_rows(self.rows)


def plain_rows(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON-ready dictionaries; bytes are left out."""
    keep = [f.name for f in rows.schema if not _is_bytes(f.type)]
    return [{name: _plain(value) for name, value in row.items()} for row in rows.select(keep).to_pylist()]


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _plain(value: Any) -> Any:
    """A value as JSON allows it, at any depth; bytes, NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, bytes):
        return None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
