"""The ledger `<table>_ledger`: what the table's commits settled and removed. A cache; the table is the truth.

Every commit of the sink carries its change in the transaction's properties. The ledger keeps these changes after the
table's old versions, and their transactions with them, are cleaned up. If a driver dies between a commit and its
record, the ledger is behind. `reconcile` then reads the missing transactions or, if they are gone, rebuilds coverage
from the shard and position columns of the rows. Removals stay in the ledger as tombstones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ingest.sink.claims import Change, Claim, Coverage, Removal, claims_of_columns, file_of, merge_claims
from pipelines.rows.contract import POSITION, SHARD
from pipelines.store.retries import is_of_the_store, retry
from pipelines.store.storage import TableRef
from pipelines.tables.opening import append_rows, open_dataset

if TYPE_CHECKING:
    import lance

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("table_version", pa.int64()),
        pa.field("kind", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("start", pa.int64()),
        pa.field("stop", pa.int64()),
        pa.field("last", pa.bool_()),
        pa.field("written", pa.int64()),
        pa.field("rejected", pa.int64()),
        pa.field("recorded_at", pa.timestamp("us", tz="UTC")),
    ]
)
_COMPACT_ABOVE_FRAGMENTS = 64
# Rows converted to Python objects at a time; a ledger may hold millions.
_ROWS_AT_ONCE = 65_536
_SETTLED, _REMOVED = "settled", "removed"
# Versions that changed no rows (the table's creation, an index) are recorded too. Otherwise every run would read their
# transactions again.
_NOTHING = "nothing"


class Ledger:
    """What is settled in one table: in memory as `coverage`, on the store as the ledger table.

    Attributes:
        coverage: what is settled.
        version: the version of the table up to which `coverage` counts.
    """

    def __init__(self, table: TableRef) -> None:
        self._table = table
        self._ref = table.sibling("ledger")
        # True if the stored ledger is unusable: it has another layout or belongs to another history.
        self._start_anew = False
        # Changes that were caught up with but not written yet. They must be written before any later change: the next
        # run trusts the ledger up to its last version, so a gap would hide them from it.
        self._unrecorded: list[tuple[int, Change]] = []
        self._recorded_version = 0
        self.coverage = Coverage()
        self.version = 0

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
        ledger._load()
        ledger.catch_up(dataset)
        return ledger

    @classmethod
    def recorded_version(cls, table: TableRef) -> int:
        """The newest version of `table` that the stored ledger holds; 0 if there is none."""
        ledger = cls(table)
        ledger._load()
        return ledger.version

    def catch_up(self, dataset: lance.LanceDataset) -> None:
        """Apply the table's changes after `version`, up to the version of `dataset`."""
        found: list[tuple[int, Change]] = []
        for version in range(self.version + 1, dataset.version + 1):
            try:
                properties = retry(partial(transaction_properties, dataset, version), self._table.uri)
            except (OSError, ValueError) as error:
                if is_of_the_store(error):
                    raise
                # The version and its transaction were cleaned up before anyone recorded them.
                found = [(int(dataset.version), self._rebuild(dataset))]
                break
            change = Change.from_properties(properties)
            if change.claims or change.removals:
                found.append((version, change))
        for _, change in found:
            self.coverage.apply(change)
        self._unrecorded += found
        self.version = max(self.version, int(dataset.version))

    def record_missing(self, dataset: lance.LanceDataset) -> None:
        """Catch up with versions that other processes made, and write everything that is not written yet."""
        self.catch_up(dataset)
        if self.version > self._recorded_version:
            self._write()

    def count_in(self, change: Change, version: int) -> None:
        """Apply the change of a commit that this process made, and write it."""
        self.coverage.apply(change)
        self._unrecorded.append((version, change))
        self.version = version
        self._write()

    def _write(self) -> None:
        now = int(time.time() * 1e6)
        rows = [row for at, change in self._unrecorded for row in _rows(change, at, now)]
        rows.append(_row(_NOTHING, self.version, now))
        data = pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)
        # A retry after a lost response can write a row twice. Readers count it once.
        retry(lambda: append_rows(self._ref, data, overwrite=self._start_anew), self._ref.uri)
        self._start_anew, self._unrecorded, self._recorded_version = False, [], self.version

    def compact(self) -> None:
        """Merge the ledger's small files if it has more than 64 of them."""
        dataset = open_dataset(self._ref, missing_ok=True)
        if dataset is not None and len(dataset.get_fragments()) > _COMPACT_ABOVE_FRAGMENTS:
            dataset.optimize.compact_files()
            dataset.cleanup_old_versions()

    def _load(self) -> None:
        dataset = open_dataset(self._ref, missing_ok=True)
        if dataset is None or dataset.schema.names != LEDGER_SCHEMA.names:
            self._start_anew = True
            return
        names = [name for name in LEDGER_SCHEMA.names if name != "recorded_at"]
        table = retry(partial(dataset.to_table, columns=names), self._ref.uri)
        table = table.sort_by([(n, "ascending") for n in ("table_version", "kind")])
        seen: set[tuple[object, ...]] = set()
        for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                if row["table_version"] > self.version:
                    self.version, seen = row["table_version"], set()
                identity = tuple(row[name] for name in ("kind", "shard", "start", "stop"))
                if identity not in seen:
                    seen.add(identity)
                    self.coverage.apply(_change(row))
        self._recorded_version = self.version

    def _rebuild(self, dataset: lance.LanceDataset) -> Change:
        """Coverage rebuilt from the rows: slower than the ledger, and as exact except for `last`."""
        rejects = open_dataset(self._table.sibling("rejects"), missing_ok=True)
        found = retry(lambda: _settled(dataset, rejected=False), self._table.uri)
        if rejects is not None:
            found += retry(lambda: _settled(rejects, rejected=True), self._table.uri)
        change = Change(claims=tuple(merge_claims(found)), files=self.coverage.files)
        self.coverage, self._unrecorded = Coverage(), []
        self._start_anew = True
        return change


def transaction_properties(dataset: lance.LanceDataset, version: int) -> dict[str, str]:
    """The properties that a version's commit recorded.

    Raises:
        OSError: the version was cleaned up, or the store cannot be read.
    """
    try:
        transaction = dataset.read_transaction(version)
    except TypeError as error:
        # Lance (14.0.2) cannot show a compaction that moved an indexed row. Such a commit adds no rows.
        if "RewrittenIndex" not in str(error):
            raise
        return {}
    return (transaction.transaction_properties or {}) if transaction else {}


def _settled(dataset: lance.LanceDataset, *, rejected: bool) -> list[Claim]:
    """The claims of a dataset's rows, in pieces: one per batch and range. `merge_claims` joins them."""
    claims: list[Claim] = []
    for batch in dataset.scanner(columns=[SHARD, POSITION]).to_batches():
        shards, positions = pc.cast(batch.column(SHARD), pa.string()), batch.column(POSITION).to_numpy()
        n = batch.num_rows
        claims += claims_of_columns(shards, positions, np.zeros(n, np.bool_), np.full(n, rejected))
    return claims


def _rows(change: Change, version: int, now_us: int) -> Iterator[dict[str, object]]:
    for removal in change.removals:
        yield _row(_REMOVED, version, now_us) | _of_shard(removal.shard, change) | {
            "start": removal.start, "stop": removal.stop, "last": False, "written": removal.rows, "rejected": 0,
        }  # fmt: skip
    for claim in change.claims:
        yield _row(_SETTLED, version, now_us) | _of_shard(claim.shard, change) | asdict(claim)


def _row(kind: str, version: int, now_us: int) -> dict[str, object]:
    return {"table_version": version, "kind": kind, "recorded_at": now_us}


def _of_shard(shard: str, change: Change) -> dict[str, object]:
    return {"shard": shard, "uri": change.files.get(file_of(shard))}


def _change(row: dict[str, Any]) -> Change:
    if row["kind"] == _NOTHING:
        return Change()
    files = {file_of(row["shard"]): row["uri"]} if row["uri"] else {}
    if row["kind"] == _REMOVED:
        removal = Removal(shard=row["shard"], start=row["start"], stop=row["stop"], rows=row["written"])
        return Change(removals=(removal,), files=files)
    names = ("shard", "start", "stop", "last", "written", "rejected")
    return Change(claims=(Claim(**{name: row[name] for name in names}),), files=files)
