"""Reads the rejects table `<table>_rejects`: the rows that could not be embedded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.rows.contract import CAPTION, POSITION, ROW_ID, SHARD
from pipelines.store.retries import retried
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_dataset

REJECT_ID = "reject_id"


REJECTS_SCHEMA = pa.schema(
    [
        # Lance dedupes concurrent merges only on a declared key.
        pa.field(REJECT_ID, pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"}),
        pa.field(ROW_ID, pa.string()),
        pa.field("source", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("attempt", pa.int32()),
        pa.field(CAPTION, pa.string()),
        pa.field(SHARD, pa.string()),
        pa.field(POSITION, pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class RejectsSummary:
    """A summary of a table's rejects.

    Attributes:
        by_reason: reason → number of rejects, the most common reason first.
        rows: some of the rejects, as dictionaries.
    """

    by_reason: dict[str, int]
    rows: list[dict[str, Any]]


@retried
def read_rejects(table: TableRef, *, reason: str | None = None, limit: int = 20) -> RejectsSummary:
    """Counts by reason over all rejects, and the first `limit` rejects (only those of `reason`, if given)."""
    dataset = open_dataset(table.sibling("rejects"), missing_ok=True)
    if dataset is None:
        return RejectsSummary(by_reason={}, rows=[])
    reasons: Counter[str] = Counter()
    for batch in dataset.scanner(columns=["reason"]).to_batches():
        for item in batch.column("reason").value_counts().to_pylist():
            reasons[item["values"]] += item["counts"]
    where = f"reason = '{reason}'" if reason else None
    columns = [name for name in REJECTS_SCHEMA.names if name not in (REJECT_ID, SHARD, POSITION)]
    rows = dataset.scanner(columns=columns, filter=where, limit=limit).to_table().to_pylist()
    return RejectsSummary(by_reason=dict(reasons.most_common()), rows=rows)
