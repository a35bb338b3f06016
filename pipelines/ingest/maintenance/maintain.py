"""Maintenance of a table and its siblings: compaction, index refresh, old versions, orphaned files.

The order of the steps makes it safe. Under the table's lease:

1. The ledger catches up and is written. Cleaning up versions erases the transactions that it is read from.
2. Indexes take in the rows that they lack, then small files are merged (Lance merges only fragments that the same
   indexes cover). Rows, indexes and ledger are checked. If a check fails, nothing has been removed yet.
3. The ledger records these versions too. Then old versions are removed, but only those that it has recorded, so a
   commit that another process makes meanwhile keeps its transaction.
4. Files that no version names are removed if they are older than any job may keep files staged (`STAGED_LIFE_S`).

A crash between any two steps leaves the table whole, and the next run continues.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.ingest.maintenance.steps import (
    DatasetFolder,
    IndexState,
    compact,
    folder_of,
    index_states,
    refresh_indexes,
    tidy,
)
from pipelines.ingest.maintenance.versions import Retention
from pipelines.ledger.coverage import Coverage
from pipelines.ledger.ledger import Ledger
from pipelines.rows.contract import POSITION, SHARD
from pipelines.store.retries import retried
from pipelines.store.storage import TableRef
from pipelines.tables.lease import Lease, LeaseHeldError
from pipelines.tables.opening import open_dataset, translate

if TYPE_CHECKING:
    import lance

_SIBLINGS = ("rejects", "ledger")
_POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class TableUpkeep:
    """What was done to one table.

    Attributes:
        table: the table's name.
        rows: its number of rows, the same before and after.
        before: its folder before maintenance.
        after: its folder after maintenance; None in a dry run, which cannot know it.
        versions_removed: number of old versions removed.
        orphans_removed: number of removed files that no version named.
        orphan_bytes: size of these files in bytes.
        small_fragments: number of fragments merged into larger ones.
        indexes: the state of each index.
    """

    table: str
    rows: int
    before: DatasetFolder
    after: DatasetFolder | None
    versions_removed: int
    orphans_removed: int
    orphan_bytes: int
    small_fragments: int
    indexes: tuple[IndexState, ...]


def maintain(table: TableRef, retention: Retention, *, wait_s: float = 0.0) -> list[TableUpkeep]:
    """Maintain a table, its rejects and its ledger.

    Args:
        table: the table to maintain.
        retention: which versions and files stay.
        wait_s: seconds to wait for a job that writes to the table before giving up.

    Returns:
        What was done, the table itself first.

    Raises:
        FileNotFoundError: there is no such table.
        LeaseHeldError: a job writes to the table; names it.
        RuntimeError: a check failed before anything was removed.
        OSError: the store fails; the table is whole.
    """
    open_dataset(table)
    Ledger.check_place(table)
    lease = _acquire(table, wait_s)
    try:
        return _maintain(table, retention, lease)
    except OSError as error:
        raise translate(error, table.uri) from error
    finally:
        lease.release()


def dry_run(table: TableRef, retention: Retention) -> list[TableUpkeep]:
    """What `maintain` would do now. Changes nothing and takes no lease.

    Raises:
        FileNotFoundError: there is no such table.
    """
    done = []
    for ref, dataset in _tables(table):
        before = folder_of(dataset)
        taken = tidy(ref, retention, recorded=int(dataset.version), dry_run=True)
        done.append(
            TableUpkeep(
                table=ref.name,
                rows=_count(dataset),
                before=before,
                after=None,
                versions_removed=taken.versions,
                orphans_removed=taken.orphans,
                orphan_bytes=taken.orphan_bytes,
                small_fragments=compact(ref, dry_run=True),
                indexes=index_states(dataset),
            )
        )
    return done


def _acquire(table: TableRef, wait_s: float) -> Lease:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return Lease.acquire(table)
        except LeaseHeldError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))


def _maintain(table: TableRef, retention: Retention, lease: Lease) -> list[TableUpkeep]:
    settled = _record(table)
    before = {ref.name: (folder_of(dataset), _count(dataset)) for ref, dataset in _tables(table)}
    merged = {ref.name: _rewrite(ref, before[ref.name][1], lease) for ref, _ in _tables(table)}
    # Lance cannot show some compactions, and the ledger must name a version whose commit can be read.
    lease.touch()
    if _record(table) != settled:
        raise RuntimeError(
            f"table {table}: the ledger no longer agrees with the table; no version was removed. "
            "Run `isthmus maintain` again while no other job runs"
        )
    done = []
    for ref, dataset in _tables(table):
        lease.renew()
        recorded = Ledger.recorded_version(table) if ref == table and settled is not None else int(dataset.version)
        taken = tidy(ref, retention, recorded=recorded, dry_run=False)
        dataset = open_dataset(ref)
        done.append(
            TableUpkeep(
                table=ref.name,
                rows=_check_rows(ref, dataset, before[ref.name][1]),
                before=before[ref.name][0],
                after=folder_of(dataset),
                versions_removed=taken.versions,
                orphans_removed=taken.orphans,
                orphan_bytes=taken.orphan_bytes,
                small_fragments=merged[ref.name],
                indexes=index_states(dataset),
            )
        )
    if _settled(table) != settled:
        raise RuntimeError(f"table {table}: the ledger changed while old versions were removed; run `isthmus info`")
    return done


def _tables(table: TableRef) -> list[tuple[TableRef, lance.LanceDataset]]:
    """The table and its existing siblings, each at its latest version."""
    siblings = [table.sibling(suffix) for suffix in _SIBLINGS]
    found = [(ref, open_dataset(ref, missing_ok=True)) for ref in siblings]
    return [(table, open_dataset(table)), *((ref, dataset) for ref, dataset in found if dataset is not None)]


def _record(table: TableRef) -> dict[str, Any] | None:
    """Bring the stored ledger up to date with the table; return what the two together say is settled."""
    dataset = open_dataset(table)
    if not {SHARD, POSITION} <= set(dataset.schema.names):
        return None
    Ledger.reconcile(table).record_missing(open_dataset(table))
    return _settled(table)


def _settled(table: TableRef) -> dict[str, Any] | None:
    """What the next `isthmus embed` would skip, read anew from the store; None for a table without shards."""
    if not {SHARD, POSITION} <= set(open_dataset(table).schema.names):
        return None
    coverage: Coverage = Ledger.reconcile(table).coverage
    return {s: (coverage.ranges(s), coverage.rows(s), coverage.is_complete(s, None)) for s in coverage}


def _rewrite(ref: TableRef, rows: int, lease: Lease) -> int:
    """Refresh the indexes and merge small files; return the number of merged fragments.

    Raises:
        RuntimeError: rows were lost or are not indexed. All earlier versions still exist.
    """
    refresh_indexes(ref)
    lease.renew()
    merged = compact(ref, progress=lease.renew)
    refresh_indexes(ref)
    dataset = open_dataset(ref)
    _check_rows(ref, dataset, rows)
    behind = [index for index in index_states(dataset) if index.unindexed_rows]
    if behind:
        raise RuntimeError(
            f"table {ref}: index {behind[0].name} lacks {behind[0].unindexed_rows} rows after its refresh; "
            f"no version was removed: rebuild it with `isthmus index {ref}`"
        )
    return merged


@retried
def _count(dataset: lance.LanceDataset) -> int:
    return int(dataset.count_rows())


def _check_rows(ref: TableRef, dataset: lance.LanceDataset, rows: int) -> int:
    # Maintenance itself makes versions that the ledger records, so the ledger may grow.
    found = _count(dataset)
    if found != rows and not ref.name.endswith("_ledger"):
        raise RuntimeError(
            f"table {ref}: {rows} rows before maintenance and {found} after; another job writes to it without the "
            "lease. Run `isthmus maintain` again when that job has ended"
        )
    return found
