"""Stale rows: rows to remove because their files changed or are gone.

A row of a changed file leaves in the same commit that brings its successor (the row with the same id), so no version of
the table holds a row twice or lacks it. Rows without a successor leave at the end, in one commit.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ingest.sink.claims import Coverage, Removal, removals_of
from pipelines.rows.contract import POSITION, ROW_ID, SHARD
from pipelines.store.retries import retry

if TYPE_CHECKING:
    import lance
    from lance.fragment import FragmentMetadata

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
    """The rows of stale shards that are still in the table. Only these rows' identities are held in memory."""

    def __init__(self, shards: Iterable[str]) -> None:
        self.shards = frozenset(shards)
        self._by_record: dict[tuple[str, int], list[StaleRow]] = {}
        self._by_row_id: dict[str, tuple[str, int]] = {}

    def find(self, dataset: lance.LanceDataset) -> None:
        """Look the rows up in one pass over three columns."""
        retry(lambda: self._find(dataset), str(dataset.uri))

    def _find(self, dataset: lance.LanceDataset) -> None:
        self._by_record, self._by_row_id = {}, {}
        if not self.shards:
            return
        wanted = pa.array(sorted(self.shards), pa.string())
        for batch in dataset.scanner(columns=[ROW_ID, SHARD, POSITION], with_row_address=True).to_batches():
            shards = pc.cast(batch.column(SHARD), pa.string())
            rows = batch.filter(pc.is_in(shards, value_set=wanted))
            columns = (pc.cast(rows.column(SHARD), pa.string()), rows.column(POSITION), rows.column(_ADDRESS))
            for row_id, shard, position, address in zip(
                rows.column(ROW_ID).to_pylist(), *(column.to_pylist() for column in columns), strict=True
            ):
                row = StaleRow(row_id, shard, position, address >> _FRAGMENT_SHIFT)
                self._by_record.setdefault((shard, position), []).append(row)
                self._by_row_id[row_id] = (shard, position)

    def succeeded_by(self, row_ids: Iterable[str]) -> list[StaleRow]:
        """All rows of the stale records that have a row with one of these ids."""
        records = {self._by_row_id[row_id] for row_id in row_ids if row_id in self._by_row_id}
        return [row for record in records for row in self._by_record.get(record, [])]

    def all(self) -> list[StaleRow]:
        """All stale rows that are left."""
        return [row for rows in self._by_record.values() for row in rows]

    def forget(self, rows: Sequence[StaleRow]) -> None:
        """Drop rows that have left the table."""
        for row in rows:
            self._by_record.pop((row.shard, row.position), None)
            self._by_row_id.pop(row.row_id, None)

    @property
    def has_rows(self) -> bool:
        """Whether any stale row is left."""
        return bool(self._by_record)

    def are_found_in(self, fragments: Container[int]) -> bool:
        """Whether the fragments of all rows still exist; False if some were rewritten since the look-up.

        Args:
            fragments: ids of the table's fragments.
        """
        return all(row.fragment in fragments for rows in self._by_record.values() for row in rows)


def rows_of_records(dataset: lance.LanceDataset, records: Collection[tuple[str, int]]) -> list[StaleRow]:
    """The rows of the given records.

    Args:
        dataset: the table.
        records: the records as (shard, position).
    """
    rows = StaleRows(shard for shard, _ in records)
    rows.find(dataset)
    return [row for row in rows.all() if (row.shard, row.position) in records]


def replacing_rows(
    dataset: lance.LanceDataset, rows: Sequence[StaleRow], new: Sequence[FragmentMetadata]
) -> lance.LanceOperation.BaseOperation:
    """The operation that removes these rows and adds new fragments: a compare-and-swap, as `committing` needs it.

    Lance rebases an `Update` over others that touch other fragments. So each of ours names the table's first fragment,
    changed or not, and two that were decided on the same version conflict. A `Merge` of all fragments, old and new,
    conflicts too, but writes the fragment list three times over. It is used only while there is no first fragment yet.

    Raises:
        OSError: the store cannot be written.
    """
    import lance

    by_fragment: dict[int, list[StaleRow]] = {}
    for row in rows:
        by_fragment.setdefault(row.fragment, []).append(row)
    fragments = dataset.get_fragments()
    if not fragments:
        return lance.LanceOperation.Merge(list(new), dataset.lance_schema)
    removed, updated = [], []
    for fragment in fragments if rows else fragments[:1]:
        leaving = by_fragment.get(fragment.fragment_id)
        left = fragment.delete(_predicate(leaving)) if leaving else fragment.metadata
        if left is None:
            removed.append(fragment.fragment_id)
        elif leaving or fragment is fragments[0]:
            updated.append(left)
    return lance.LanceOperation.Update(
        removed_fragment_ids=removed, updated_fragments=updated, new_fragments=list(new), fields_modified=[]
    )


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
    """SQL that matches these rows of a fragment and no row of another shard."""
    ids, shards = ({getattr(row, name) for row in rows} for name in ("row_id", "shard"))
    return f"{ROW_ID} IN ({_literals(ids)}) AND {SHARD} IN ({_literals(shards)})"


def _literals(values: Iterable[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in sorted(values))
