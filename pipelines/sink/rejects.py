"""The rejects table `<table>_rejects`: rows that could not be embedded, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract import CAPTION, POSITION, ROW_ID, SHARD
from pipelines.storage import TableRef

if TYPE_CHECKING:
    import lance

REJECT_ID = "reject_id"
_SHARDS_AT_ONCE = 1_000

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
    import lance

    if rejects.num_rows == 0:
        return
    ref = table.sibling("rejects")
    dataset = _open(ref)
    if dataset is None:
        lance.write_dataset(rejects, ref.uri, mode="create", storage_options=ref.options)
        return
    merge = dataset.merge_insert(REJECT_ID)
    merge.when_matched_update_all().when_not_matched_insert_all().execute(rejects)


def delete_rejects(table: TableRef, is_leaving: Callable[[str], bool]) -> None:
    """Take the rejects of some shards out.

    Args:
        table: the table that the rows were meant for.
        is_leaving: whether the rejects of a shard leave.
    """
    dataset = _open(table.sibling("rejects"))
    if dataset is None:
        return
    leaving = [s for s in pc.unique(dataset.to_table(columns=[SHARD])[SHARD]).to_pylist() if is_leaving(s)]
    for start in range(0, len(leaving), _SHARDS_AT_ONCE):
        shown = ", ".join(f"'{shard}'" for shard in leaving[start : start + _SHARDS_AT_ONCE])
        dataset.delete(f"{SHARD} IN ({shown})")


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
    from pipelines.sink.tables import open_dataset

    return open_dataset(ref, missing_ok=True)
