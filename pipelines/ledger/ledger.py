"""The ledger `<table>_ledger`: what the table's commits settled and removed. A cache; the table is the truth.

Every commit of the sink carries its change in the transaction's properties. The ledger keeps these changes after the
table's old versions, and their transactions with them, are cleaned up. If a driver dies between a commit and its
record, the ledger is behind, and `reconcile` reads the missing transactions.

The ledger names the table's identity, and the version and commit up to which it counts. If the table's history does not
hold that commit (the table was dropped and made anew, restored, put back from a backup, overwritten), or if versions
were cleaned up before they were recorded, coverage is rebuilt from the rows. Removals stay in the ledger as tombstones.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipelines.ledger.claims import Change
from pipelines.ledger.coverage import Coverage
from pipelines.ledger.history import commit_at
from pipelines.ledger.rebuilding import rebuilt_from_rows
from pipelines.ledger.rejects import check_rejects
from pipelines.ledger.stored import Anchor, Stored, StoredLedger
from pipelines.store.storage import TableRef
from pipelines.tables.identity import identity_of
from pipelines.tables.opening import open_dataset

if TYPE_CHECKING:
    import lance

log = logging.getLogger(__name__)


class Ledger:
    """What is settled in one table: in memory as `coverage`, on the store as the ledger table.

    Attributes:
        coverage: what is settled.
        version: the version of the table up to which `coverage` counts.
        rebuilt: why coverage was rebuilt from the rows; None if it was not.
    """

    def __init__(self, table: TableRef) -> None:
        self._table = table
        self._stored = StoredLedger(table)
        # Changes that were caught up with but not written yet. They must be written before any later change: the next
        # run trusts the ledger up to its last version, so a gap would hide them from it.
        self._unrecorded: list[tuple[int, Change]] = []
        self._token: str | None = None
        self._recorded_version = 0
        self._must_rebuild: str | None = None
        self._is_lost = False
        self.coverage = Coverage()
        self.version = 0
        self.rebuilt: str | None = None

    @classmethod
    def reconcile(cls, table: TableRef) -> Ledger:
        """The ledger of `table`, caught up with the table's commits. Writes nothing.

        Raises:
            OSError: the store cannot be read.
        """
        ledger = cls(table)
        dataset = open_dataset(table, missing_ok=True)
        if dataset is None:
            return ledger
        ledger._load(dataset)
        ledger.catch_up(dataset)
        ledger._is_lost = False
        return ledger

    @classmethod
    def recorded_version(cls, table: TableRef) -> int:
        """The newest version of `table` that the stored ledger accounts for; 0 if there is none."""
        stored = StoredLedger(table).load()
        return stored.anchor.version if stored else 0

    @staticmethod
    def check_place(table: TableRef) -> None:
        """Check, before anything is written, that the ledger and the rejects would not replace somebody's table.

        Raises:
            ValueError: names the table that is in the way, and the remedy.
        """
        StoredLedger(table).check()
        check_rejects(table)

    def catch_up(self, dataset: lance.LanceDataset) -> None:
        """Apply the table's changes after `version`, up to the version of `dataset`."""
        if dataset.version < self.version:
            self._must_rebuild = f"the table went back to version {dataset.version}"
        for version in range(self.version + 1, dataset.version + 1):
            if self._must_rebuild:
                break
            commit = commit_at(dataset, version)
            if commit is None:
                self._must_rebuild = f"version {version} was cleaned up before it was recorded"
            elif commit.replaces_rows and not commit.is_empty:
                self._must_rebuild = f"version {version} put other rows in place of the table's"
            else:
                self._token = commit.token
                self._apply(version, Change.from_properties(commit.properties), clears=commit.is_empty)
        if self._must_rebuild:
            self._rebuild(dataset, self._must_rebuild)
        self.version = int(dataset.version)

    def record_missing(self, dataset: lance.LanceDataset) -> None:
        """Catch up with versions that other processes made, and write everything that is not written yet."""
        self.catch_up(dataset)
        if self.version != self._recorded_version:
            self._write(dataset)

    def count_in(self, change: Change, dataset: lance.LanceDataset, token: str) -> None:
        """Apply the change of a commit that this process made, and write it.

        Args:
            change: the change.
            dataset: the table at the version that the commit made.
            token: the commit's token.
        """
        self.version, self._token = int(dataset.version), token
        self._apply(self.version, change)
        self._write(dataset)

    def compact(self) -> None:
        """Merge the ledger's small files if it has more than 64 of them."""
        self._stored.compact()

    def _load(self, dataset: lance.LanceDataset) -> None:
        stored = self._stored.load()
        if stored is None:
            self._is_lost = True
            return
        self.coverage = stored.coverage
        if stored.anchor.table != identity_of(dataset.schema):
            self._forget("it belongs to another table of this name")
        elif why := _mismatch(stored, dataset):
            self._must_rebuild = why
        else:
            self.version = self._recorded_version = stored.anchor.version
            self._token = stored.anchor.commit
            if stored.is_old:  # its rows are carried over by the next write
                self._recorded_version = 0

    def _forget(self, why: str) -> None:
        """Start from the table's first version. Where a shard ends, and which file it is of, stays known."""
        log.warning("table %s: its ledger is read anew from the table: %s", self._table, why)
        self.rebuilt = why
        self._stored.start_anew()
        fresh = Coverage()
        fresh.remember(self.coverage)
        self.coverage = fresh

    def _apply(self, version: int, change: Change, *, clears: bool = False) -> None:
        if clears:
            fresh = Coverage()
            fresh.remember(self.coverage)
            self.coverage, self._unrecorded = fresh, []
            self._stored.start_anew()
        if change.claims or change.removals:
            self.coverage.apply(change)
            self._unrecorded.append((version, change))

    def _rebuild(self, dataset: lance.LanceDataset, why: str) -> None:
        log.warning("table %s: what is settled is rebuilt from its rows: %s", self._table, why)
        self.rebuilt, self._must_rebuild = why, None
        change = rebuilt_from_rows(self._table, dataset, self.coverage, ledger_is_lost=self._is_lost)
        fresh = Coverage()
        fresh.remember(self.coverage)
        fresh.apply(change)
        self._stored.start_anew()
        self.coverage, self._unrecorded = fresh, [(int(dataset.version), change)]
        self._recorded_version = 0
        head = commit_at(dataset, int(dataset.version))
        self._token = head.token if head else None

    def _write(self, dataset: lance.LanceDataset) -> None:
        anchor = Anchor(table=identity_of(dataset.schema), version=self.version, commit=self._token)
        self._stored.append(self._unrecorded, anchor)
        self._unrecorded, self._recorded_version = [], self.version


def _mismatch(stored: Stored, dataset: lance.LanceDataset) -> str | None:
    """Why the stored ledger does not account for this table's history; None if it does.

    Equal version numbers of different histories differ in the commit's token.
    """
    anchor = stored.anchor
    if anchor.version > dataset.version:
        return f"the ledger accounts for version {anchor.version}, and the table is at version {dataset.version}"
    if stored.is_old:  # ledgers from before there were tokens could only be trusted
        return None
    commit = commit_at(dataset, anchor.version)
    if commit is None:
        return f"version {anchor.version}, which the ledger accounts for, was cleaned up"
    if commit.token != anchor.commit:
        return f"version {anchor.version} was made by another commit than the one that the ledger accounts for"
    return None
