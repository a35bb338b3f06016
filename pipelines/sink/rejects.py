"""The rejects table `<table>_rejects`: rows that could not be embedded, as data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.contract import CAPTION, POSITION, ROW_ID, SHARD
from pipelines.retries import retry
from pipelines.sink.tables import create_dataset, open_dataset
from pipelines.storage import TableRef

if TYPE_CHECKING:
    import lance

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
    """The rejects of a table: how many by reason, and some of them."""

    by_reason: dict[str, int]
    rows: list[dict[str, Any]]


def merge_rejects(table: TableRef, rejects: pa.Table) -> None:
    """Put rejected rows into the rejects table; a replay of the same rows changes nothing.

    Args:
        table: the table that the rows were meant for.
        rejects: rows of `REJECTS_SCHEMA`.
    """
    if rejects.num_rows:
        ref = table.sibling("rejects")
        retry(lambda: _merge(ref, rejects), ref.uri)


def _merge(ref: TableRef, rejects: pa.Table) -> None:
    dataset = _open(ref) or create_dataset(ref, REJECTS_SCHEMA)
    merge = dataset.merge_insert(REJECT_ID)
    merge.when_matched_update_all().when_not_matched_insert_all().execute(rejects)


def read_rejects(table: TableRef, *, reason: str | None = None, limit: int = 20) -> RejectsSummary:
    """Counts by reason over all rejects, and the first `limit` rows (of `reason`, if given)."""
    dataset = _open(table.sibling("rejects"))
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


def _open(ref: TableRef) -> lance.LanceDataset | None:
    """The rejects dataset, None where no row was ever rejected."""
    return open_dataset(ref, missing_ok=True)
