"""Writes the rejects table `<table>_rejects`.

Rejects are added before the commit that settles their records, under the token of their staged group. Nothing is taken
away before a commit justifies it: rejects that do not count (see `pipelines.ledger.rejects`) are deleted afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.coverage import Coverage
from pipelines.ledger.reading import judged_rejects
from pipelines.ledger.rejects import REJECT_ID, REJECTS_SCHEMA, TOKEN, open_rejects, rejects_schema
from pipelines.rows.contract import POSITION, SHARD
from pipelines.store.retries import retry
from pipelines.store.storage import TableRef
from pipelines.tables.literals import is_any_of
from pipelines.tables.opening import append_rows, open_dataset

if TYPE_CHECKING:
    import lance

_ATTEMPT = "attempt"
_IDS_AT_ONCE = 1_000
Record = tuple[str, int]


def add_rejects(
    table: TableRef, dataset: lance.LanceDataset, rejects: pa.Table, attempts: Mapping[Record, int]
) -> None:
    """Add the rejects of a staged group. Adding the same ones again changes nothing.

    Args:
        table: the table that the rows were meant for.
        dataset: that table, opened.
        rejects: rows of `REJECTS_SCHEMA`.
        attempts: record (shard, position) → how often it was tried, for records that are tried again.
    """
    if rejects.num_rows:
        rows = _with_attempts(rejects, attempts)
        retry(lambda: _add(table, dataset, rows), table.sibling("rejects").uri)


def _add(table: TableRef, dataset: lance.LanceDataset, rejects: pa.Table) -> None:
    there = open_rejects(table, dataset)
    if there is None:  # none, or those of a dropped table of this name
        append_rows(table.sibling("rejects"), rejects.cast(rejects_schema(dataset)), overwrite=True)
        return
    if TOKEN not in there.schema.names:
        there.add_columns(REJECTS_SCHEMA.field(TOKEN))
    merge = there.merge_insert(REJECT_ID)
    merge.when_matched_update_all().when_not_matched_insert_all().execute(rejects)


def _with_attempts(rejects: pa.Table, attempts: Mapping[Record, int]) -> pa.Table:
    records = zip(rejects[SHARD].to_pylist(), rejects[POSITION].to_pylist(), strict=True)
    values = pa.array([attempts.get(record, 1) for record in records], pa.int32())
    index = rejects.schema.get_field_index(_ATTEMPT)
    return rejects.set_column(index, rejects.schema.field(index), values)


def attempts_so_far(table: TableRef, coverage: Coverage) -> dict[Record, int]:
    """How often each record that is rejected and not settled was tried, so that it keeps its count."""
    keys, _ = _judged(table, coverage)
    if keys is None:
        return {}
    found: dict[Record, int] = {}
    for shard, position, attempt in _rows(keys, SHARD, POSITION, _ATTEMPT):
        if not coverage.has(shard, position):
            found[shard, position] = max(attempt, found.get((shard, position), 0))
    return found


def rejected_records(table: TableRef, coverage: Coverage, reasons: Collection[str]) -> dict[Record, int]:
    """The records with a reject that counts, for one of these reasons, and how often each was tried."""
    keys, counts = _judged(table, coverage)
    if keys is None:
        return {}
    wanted = pc.and_(counts, pc.is_in(keys["reason"], value_set=pa.array(sorted(reasons), pa.string())))
    return {(shard, at): n for shard, at, n in _rows(keys.filter(wanted), SHARD, POSITION, _ATTEMPT)}


def sweep_rejects(table: TableRef, coverage: Coverage) -> int:
    """Delete the rejects that do not count; return their number. Only under the lease, after all commits."""
    keys, counts = _judged(table, coverage)
    if keys is None:
        return 0
    leaving = keys.filter(pc.invert(counts))[REJECT_ID].to_pylist()
    ref = table.sibling("rejects")
    for start in range(0, len(leaving), _IDS_AT_ONCE):
        where = is_any_of(REJECT_ID, leaving[start : start + _IDS_AT_ONCE])
        retry(lambda where=where: open_dataset(ref).delete(where), ref.uri)  # type: ignore[misc]
    return len(leaving)


def _judged(table: TableRef, coverage: Coverage) -> tuple[pa.Table | None, pa.Array]:
    rejects = open_rejects(table, open_dataset(table))
    if rejects is None:
        return None, pa.array([], pa.bool_())
    return judged_rejects(table, rejects, coverage)


def _rows(keys: pa.Table, *names: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(keys[name].to_pylist() for name in names), strict=True)
