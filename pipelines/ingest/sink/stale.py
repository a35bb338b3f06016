"""Stale rows: rows to remove because their files changed or are gone.

A row of a changed file leaves in the same commit that brings its successor (the row with the same id), so no version of
the table holds a row twice or lacks it. Rows without a successor leave at the end, in one commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.claims import Removal, removals_of
from pipelines.ledger.coverage import Coverage
from pipelines.ledger.history import commit_at
from pipelines.rows.contract import POSITION, ROW_ID, SHARD
from pipelines.store.retries import retry
from pipelines.tables.literals import is_any_of, quoted

if TYPE_CHECKING:
    import lance
    from lance.fragment import FragmentMetadata

Record = tuple[str, int]
_ADDRESS = "_rowaddr"
_FRAGMENT_SHIFT = 32


@dataclass(frozen=True)
class StaleRow:
    """A row to remove.

    Attributes:
        row_id: the row's id.
        shard: the id of its shard.
        position: the position of its record in the shard.
        fragment: the id of the Lance fragment that holds it.
    """

    row_id: str
    shard: str
    position: int
    fragment: int


class StaleRows:
    """The rows of stale shards that are still in the table. Only these rows' identities are held in memory.

    Args:
        shards: the stale shards.
        replaceable: shards whose rows leave only if a row with the same id comes.
    """

    def __init__(self, shards: Iterable[str], replaceable: Iterable[str] = ()) -> None:
        self.shards = frozenset(shards)
        self._looked_for = self.shards | frozenset(replaceable)
        self._version = 0
        self._by_record: dict[Record, list[StaleRow]] = {}
        # A corpus may repeat a key, so an id may stand for several records.
        self._by_row_id: dict[str, list[Record]] = {}

    def find(self, dataset: lance.LanceDataset) -> None:
        """Look the rows up in one pass over three columns."""
        retry(lambda: self._find(dataset), str(dataset.uri))
        self._version = int(dataset.version)

    def _find(self, dataset: lance.LanceDataset) -> None:
        self._by_record, self._by_row_id = {}, {}
        if not self._looked_for:
            return
        wanted = pa.array(sorted(self._looked_for), pa.string())
        for batch in dataset.scanner(columns=[ROW_ID, SHARD, POSITION], with_row_address=True).to_batches():
            shards = pc.cast(batch.column(SHARD), pa.string())
            rows = batch.filter(pc.is_in(shards, value_set=wanted))
            columns = (pc.cast(rows.column(SHARD), pa.string()), rows.column(POSITION), rows.column(_ADDRESS))
            for row_id, shard, position, address in zip(
                rows.column(ROW_ID).to_pylist(), *(column.to_pylist() for column in columns), strict=True
            ):
                row = StaleRow(row_id, shard, position, address >> _FRAGMENT_SHIFT)
                self._by_record.setdefault((shard, position), []).append(row)
                self._by_row_id.setdefault(row_id, []).append((shard, position))

    def succeeded_by(self, row_ids: Iterable[str]) -> list[StaleRow]:
        """All rows of the stale records that rows with these ids replace, each of them one record with its id."""
        records: dict[Record, None] = {}
        for row_id, count in Counter(row_ids).items():
            there = sorted(self._by_row_id.get(row_id, ()))
            records |= dict.fromkeys(there[:count])
        return [row for record in records for row in self._by_record.get(record, [])]

    def all(self) -> list[StaleRow]:
        """All stale rows that are left."""
        return [row for rows in self._by_record.values() for row in rows if row.shard in self.shards]

    def left_at(self, rows: Sequence[StaleRow], dataset: lance.LanceDataset) -> None:
        """Drop rows that left the table in the commit that made this version."""
        for row in rows:
            record = (row.shard, row.position)
            self._by_record.pop(record, None)
            others = [one for one in self._by_row_id.get(row.row_id, ()) if one != record]
            self._by_row_id[row.row_id] = others
        self._version = int(dataset.version)

    def look_up_again_if_moved(self, dataset: lance.LanceDataset, *, surely: bool = False) -> None:
        """Find the rows anew if another writer may have moved them.

        Args:
            dataset: the version that the next commit is decided on.
            surely: whether a commit found them moved.
        """
        if surely or (self._by_record and not self._are_where_they_were(dataset)):
            self.find(dataset)

    def _are_where_they_were(self, dataset: lance.LanceDataset) -> bool:
        """Whether every version since the look-up left the rows alone. An update by another tool moves its rows."""
        commits = (commit_at(dataset, version) for version in range(self._version + 1, int(dataset.version) + 1))
        return all(commit is not None and not commit.moves_rows for commit in commits)


def rows_of_records(dataset: lance.LanceDataset, records: Collection[tuple[str, int]]) -> list[StaleRow]:
    """The rows of the given records.

    Args:
        dataset: the table.
        records: the records as (shard, position).
    """
    rows = StaleRows(shard for shard, _ in records)
    rows.find(dataset)
    return [row for row in rows.all() if (row.shard, row.position) in records]


class MovedRowsError(RuntimeError):
    """Another writer moved or deleted rows that were to leave, since they were looked up."""


def leaving_fragments(
    dataset: lance.LanceDataset, rows: Sequence[StaleRow]
) -> tuple[list[FragmentMetadata], list[int]]:
    """The fragments without these rows, and the ids of the fragments of which nothing is left.

    Raises:
        MovedRowsError: a fragment does not hold all of its rows any more. Nothing was committed.
        OSError: the store cannot be written.
    """
    by_fragment: dict[int, list[StaleRow]] = {}
    for row in rows:
        by_fragment.setdefault(row.fragment, []).append(row)
    updated, removed = [], []
    fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()} if by_fragment else {}
    for number, leaving in sorted(by_fragment.items()):
        if number not in fragments:
            raise MovedRowsError(f"fragment {number} is gone")
        fragment = fragments[number]
        before = fragment.count_rows()
        left = fragment.delete(_predicate(leaving))
        after = left.num_rows if left is not None else 0
        if before - after != len(leaving):
            raise MovedRowsError(f"fragment {number}: {before - after} rows would leave instead of {len(leaving)}")
        if left is None:
            removed.append(number)
        else:
            updated.append(left)
    return updated, removed


def removals_for(rows: Sequence[StaleRow]) -> list[Removal]:
    """The removals that the ledger records for these rows."""
    return removals_of((row.shard, row.position) for row in rows)


def removals_of_shards(coverage: Coverage, shards: Iterable[str]) -> list[Removal]:
    """The removals of everything that is settled in some shards, rejects included, as the ledger records them."""
    found = []
    for shard in sorted(shards):
        for n, (start, stop) in enumerate(coverage.ranges(shard)):
            rows = coverage.rows(shard) if n == 0 else 0
            found.append(Removal(shard=shard, start=start, stop=stop, rows=rows))
    return found


def _predicate(rows: Sequence[StaleRow]) -> str:
    """SQL that matches these rows and no other: the key of the bookkeeping, shard and position, with the row's id."""
    by_shard: dict[str, list[StaleRow]] = {}
    for row in rows:
        by_shard.setdefault(row.shard, []).append(row)
    return " OR ".join(
        f"({SHARD} = {quoted(shard)} AND {is_any_of(POSITION, {row.position for row in of_shard})}"
        f" AND {is_any_of(ROW_ID, {row.row_id for row in of_shard})})"
        for shard, of_shard in sorted(by_shard.items())
    )
