"""The ledger `<table>_ledger`: which claims the table's commits hold. A cache; the table is the truth.

Every commit of the sink carries its claims in the transaction's properties. The ledger keeps them when the
table's old versions, and with them their transactions, are cleaned away. A driver that died between commit and
record leaves a ledger that is behind; `reconcile` reads the transactions that it lacks, or, where those are
gone, rebuilds coverage from the shard and position columns of the rows themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract import POSITION, SHARD
from pipelines.retries import Fault, classify, retry
from pipelines.sink.claims import CLAIMS_PROPERTY, Claim, Coverage, claims_of, decode_claims
from pipelines.sink.tables import append_rows, open_dataset
from pipelines.storage import TableRef

if TYPE_CHECKING:
    import lance

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("table_version", pa.int64()),
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
# A version that holds no claims (the table's creation, an index) is recorded too, as a row without a shard, so
# that the next run does not read its transaction again.
_NO_SHARD = ""


class Ledger:
    """The claims of one table, in memory as `coverage`, durably beside it."""

    def __init__(self, table: TableRef) -> None:
        self._table = table
        self._ref = table.sibling("ledger")
        self.coverage = Coverage()
        self.version = 0

    @classmethod
    def reconcile(cls, table: TableRef) -> Ledger:
        """The ledger of `table`, caught up with the table's commits; writes nothing.

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

    def catch_up(self, dataset: lance.LanceDataset) -> list[Claim]:
        """Count in the claims of the table's versions since `version`, up to that of `dataset`; return them."""
        found: list[Claim] = []
        for version in range(self.version + 1, dataset.version + 1):
            try:
                transaction = retry(partial(dataset.read_transaction, version), self._table.uri)
            except (OSError, ValueError) as error:
                if classify(error) in (Fault.TRANSIENT, Fault.DENIED, Fault.EXPIRED):
                    raise
                # The version, and its transaction, were cleaned away before anyone recorded it.
                return self._rebuild(dataset)
            properties = (transaction.transaction_properties or {}) if transaction else {}
            if text := properties.get(CLAIMS_PROPERTY):
                found.extend(decode_claims(text))
        self._count_in(found, dataset.version)
        return found

    def record(self, claims: Iterable[Claim], version: int) -> None:
        """Write down claims that the table's `version` is known to hold (those of `catch_up`, or of a commit)."""
        now = int(time.time() * 1e6)
        rows = [_row(claim, version, now) for claim in claims] or [_marker(version, now)]
        # Rows that a try wrote whose answer was lost stand there twice; `Coverage` counts a claim once.
        retry(lambda: append_rows(self._ref, pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)), self._ref.uri)

    def record_missing(self, dataset: lance.LanceDataset) -> None:
        """Catch up with the versions that another process made since, and record them."""
        if dataset.version > self.version:
            self.record(self.catch_up(dataset), dataset.version)

    def count_in(self, claims: list[Claim], version: int) -> None:
        """Count in the claims of a commit that this process made, and record them."""
        self._count_in(claims, version)
        self.record(claims, version)

    def compact(self) -> None:
        """Merge the ledger's many small files when there are too many of them."""
        dataset = open_dataset(self._ref, missing_ok=True)
        if dataset is not None and len(dataset.get_fragments()) > _COMPACT_ABOVE_FRAGMENTS:
            dataset.optimize.compact_files()
            dataset.cleanup_old_versions()

    def _count_in(self, claims: list[Claim], version: int) -> None:
        for claim in claims:
            self.coverage.add(claim)
        self.version = max(self.version, version)

    def _load(self) -> None:
        dataset = open_dataset(self._ref, missing_ok=True)
        if dataset is None:
            return
        for row in retry(lambda: dataset.to_table().to_pylist(), self._ref.uri):
            self.version = max(self.version, row["table_version"])
            if row["shard"] != _NO_SHARD:
                self.coverage.add(_claim(row))

    def _rebuild(self, dataset: lance.LanceDataset) -> list[Claim]:
        """Coverage from the rows: slower than the ledger, as exact, but for which record is a shard's last."""
        rejects = open_dataset(self._table.sibling("rejects"), missing_ok=True)
        rows = retry(lambda: list(_settled_rows(dataset, rejected=False)), self._table.uri)
        if rejects is not None:
            rows += retry(lambda: list(_settled_rows(rejects, rejected=True)), self._table.uri)
        claims = claims_of(rows)
        self.coverage = Coverage()
        self._count_in(claims, dataset.version)
        return claims


def _settled_rows(dataset: lance.LanceDataset, *, rejected: bool) -> Iterator[tuple[str, int, bool, bool]]:
    for batch in dataset.scanner(columns=[SHARD, POSITION]).to_batches():
        shards = pc.cast(batch.column(SHARD), pa.string()).to_pylist()
        for shard, position in zip(shards, batch.column(POSITION).to_pylist(), strict=True):
            yield shard, position, False, rejected


def _row(claim: Claim, version: int, now_us: int) -> dict[str, object]:
    return {
        "table_version": version,
        "shard": claim.shard,
        "start": claim.start,
        "stop": claim.stop,
        "last": claim.last,
        "written": claim.written,
        "rejected": claim.rejected,
        "recorded_at": now_us,
    }


def _marker(version: int, now_us: int) -> dict[str, object]:
    nothing = Claim(shard=_NO_SHARD, start=0, stop=0, last=False, written=0, rejected=0)
    return _row(nothing, version, now_us)


def _claim(row: dict[str, object]) -> Claim:
    names = ("shard", "start", "stop", "last", "written", "rejected")
    return Claim(**{name: row[name] for name in names})  # type: ignore[arg-type]
