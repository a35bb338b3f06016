"""Writes the rejects table `<table>_rejects`: the rejects that a commit settles, and those that are retried."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ingest.sink.claims import Claim
from pipelines.rows.contract import POSITION, SHARD
from pipelines.store.retries import retried, retry
from pipelines.store.storage import TableRef
from pipelines.tables.opening import create_dataset, open_dataset
from pipelines.tables.rejects import REJECT_ID, REJECTS_SCHEMA

if TYPE_CHECKING:
    import lance

_ATTEMPT = "attempt"
_SHARDS_AT_ONCE = 1_000
_CLAIMS_AT_ONCE = 200


def settle_rejects(table: TableRef, rejects: pa.Table, claims: Iterable[Claim], known: Container[str]) -> None:
    """Write the rejects of some settled records, in place of earlier rejects of the same records.

    A replay changes nothing. A record that is retried keeps its count of attempts.

    Args:
        table: the table that the rows were meant for.
        rejects: rows of `REJECTS_SCHEMA`.
        claims: the settled records, written and rejected.
        known: shards that the rejects table may already hold rows of.
    """
    ref = table.sibling("rejects")
    again = list(_conditions(claim for claim in claims if claim.shard in known))
    if again or rejects.num_rows:
        retry(lambda: _settle(ref, rejects, again), ref.uri)


def _settle(ref: TableRef, rejects: pa.Table, again: Sequence[str]) -> None:
    dataset = _open(ref)
    if dataset is None:
        dataset = create_dataset(ref, REJECTS_SCHEMA)
    staying = set(rejects[REJECT_ID].to_pylist())
    attempts: dict[tuple[str, int], int] = {}
    for where in again:
        before = dataset.to_table(columns=[REJECT_ID, SHARD, POSITION, _ATTEMPT], filter=where).to_pylist()
        attempts |= {(row[SHARD], row[POSITION]): row[_ATTEMPT] for row in before}
        leaving = [row[REJECT_ID] for row in before if row[REJECT_ID] not in staying]
        if leaving:
            dataset.delete(f"{REJECT_ID} IN ({', '.join(map(repr, leaving))})")
    if rejects.num_rows:
        merge = dataset.merge_insert(REJECT_ID)
        merge.when_matched_update_all().when_not_matched_insert_all().execute(_with_attempts(rejects, attempts))


def _conditions(claims: Iterable[Claim]) -> Iterator[str]:
    """SQL filters that match the rejects of the claimed records, 200 claims per filter."""
    found = [f"({SHARD} = '{c.shard}' AND {POSITION} >= {c.start} AND {POSITION} < {c.stop})" for c in claims]
    for start in range(0, len(found), _CLAIMS_AT_ONCE):
        yield " OR ".join(found[start : start + _CLAIMS_AT_ONCE])


def _with_attempts(rejects: pa.Table, attempts: dict[tuple[str, int], int]) -> pa.Table:
    records = zip(rejects[SHARD].to_pylist(), rejects[POSITION].to_pylist(), strict=True)
    values = pa.array([attempts.get(record, 1) for record in records], pa.int32())
    index = rejects.schema.get_field_index(_ATTEMPT)
    return rejects.set_column(index, rejects.schema.field(index), values)


def rejected_shards(table: TableRef) -> frozenset[str]:
    """Shards that the rejects table holds rows of."""
    ref = table.sibling("rejects")
    dataset = _open(ref)
    if dataset is None:
        return frozenset()
    return frozenset(pc.unique(retry(lambda: dataset.to_table(columns=[SHARD]), ref.uri)[SHARD]).to_pylist())


@retried
def begin_retry(table: TableRef, reasons: Collection[str], shards: Container[str]) -> list[tuple[str, int]]:
    """Add one attempt to the records rejected for some reasons, and return these records as (shard, position).

    Args:
        table: the table that the rows were meant for.
        reasons: reason codes to retry.
        shards: only records of these shards are counted and returned.
    """
    dataset = _open(table.sibling("rejects"))
    if dataset is None:
        return []
    shown = ", ".join(f"'{reason}'" for reason in sorted(reasons))
    rows = dataset.to_table(filter=f"reason IN ({shown})")
    rows = rows.filter(pa.array([shard in shards for shard in rows[SHARD].to_pylist()], pa.bool_()))
    if rows.num_rows:
        index = rows.schema.get_field_index(_ATTEMPT)
        more = rows.set_column(index, rows.schema.field(index), pc.add(rows[_ATTEMPT], pa.scalar(1, pa.int32())))
        dataset.merge_insert(REJECT_ID).when_matched_update_all().execute(more)
    return sorted(set(zip(rows[SHARD].to_pylist(), rows[POSITION].to_pylist(), strict=True)))


@retried
def delete_rejects(table: TableRef, is_leaving: Callable[[str], bool]) -> None:
    """Delete the rejects of some shards.

    Args:
        table: the table that the rows were meant for.
        is_leaving: whether a shard's rejects are deleted.
    """
    dataset = _open(table.sibling("rejects"))
    if dataset is None:
        return
    leaving = sorted(shard for shard in rejected_shards(table) if is_leaving(shard))
    for start in range(0, len(leaving), _SHARDS_AT_ONCE):
        shown = ", ".join(f"'{shard}'" for shard in leaving[start : start + _SHARDS_AT_ONCE])
        dataset.delete(f"{SHARD} IN ({shown})")


def _open(ref: TableRef) -> lance.LanceDataset | None:
    """The rejects dataset; None if no row was ever rejected."""
    return open_dataset(ref, missing_ok=True)
