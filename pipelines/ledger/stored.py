"""The ledger as a table: its layout, and how it is read and written."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.claims import Change, Claim, Rejecting, Removal, file_of
from pipelines.ledger.coverage import Coverage
from pipelines.store.retries import is_of_the_store, retry
from pipelines.store.storage import TableRef
from pipelines.tables.opening import append_rows, open_dataset
from pipelines.tables.siblings import check_ours, marked

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("table", pa.string()),
        pa.field("table_version", pa.int64()),
        pa.field("commit", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("start", pa.int64()),
        pa.field("stop", pa.int64()),
        pa.field("last", pa.bool_()),
        pa.field("written", pa.int64()),
        pa.field("rejected", pa.int64()),
        pa.field("token", pa.string()),
        pa.field("recorded_at", pa.timestamp("us", tz="UTC")),
    ]
)
_NEW_COLUMNS = ("table", "commit", "token")
OLD_LEDGER_SCHEMA = pa.schema([field for field in LEDGER_SCHEMA if field.name not in _NEW_COLUMNS])
_ROLE = "ledger"
_COMPACT_ABOVE_FRAGMENTS = 64
# Rows converted to Python objects at a time; a ledger may hold millions.
_ROWS_AT_ONCE = 65_536
# The names sort in the order in which the changes of a version apply.
_REMOVED, _SETTLED, _TOKENS = "removed", "settled", "tokens"
# Each write ends with a row that names the version and the commit up to which the ledger counts. So versions that
# changed no rows (the table's creation, an index) are not read again by every run.
_NOTHING = "nothing"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """The point of a table's history up to which the ledger counts.

    Attributes:
        table: the table's identity; None for a table from before tables had one.
        version: the table's version.
        commit: the token of the commit that made it.
    """

    table: str | None
    version: int
    commit: str | None


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A ledger as it was read.

    Attributes:
        coverage: what is settled at the anchor.
        anchor: the point of the table's history up to which the ledger counts.
        is_old: whether the ledger is from before it named the table and the commit.
    """

    coverage: Coverage
    anchor: Anchor
    is_old: bool


class StoredLedger:
    """The ledger table of one table."""

    def __init__(self, table: TableRef) -> None:
        self._ref = table.sibling("ledger")
        self._start_anew = True
        self._is_damaged = False
        # The rows of a ledger of the old layout, in the new one.
        self._carried = LEDGER_SCHEMA.empty_table()

    def load(self) -> Stored | None:
        """The stored ledger; None if there is none, or if it cannot be read, which one line of warning says.

        Raises:
            OSError: the store cannot be read.
        """
        try:
            dataset = open_dataset(self._ref, missing_ok=True)
            if dataset is None:
                return None
            rows = retry(dataset.to_table, self._ref.uri)
            names = set(rows.column_names)
            if not set(OLD_LEDGER_SCHEMA.names) <= names:
                return None
            return self._read(rows, is_old=not set(LEDGER_SCHEMA.names) <= names)
        except Exception as error:
            if is_of_the_store(error):
                raise
            log.warning("%s: the ledger cannot be read and is made anew from the table: %s", self._ref, _line(error))
            self.start_anew()
            self._is_damaged = True
            return None

    def check(self) -> None:
        """Check that the place of the ledger is free or ours. A ledger that cannot be read passes for ours.

        Raises:
            ValueError: another table of this name is there.
            OSError: the store cannot be read.
        """
        try:
            found = open_dataset(self._ref, missing_ok=True)
        except Exception as error:
            if is_of_the_store(error):
                raise
            return
        if found is not None:
            check_ours(self._ref, found.schema, _ROLE, OLD_LEDGER_SCHEMA)

    def start_anew(self) -> None:
        """The next write replaces what is stored."""
        self._start_anew, self._carried = True, LEDGER_SCHEMA.empty_table()

    def append(self, changes: Sequence[tuple[int, Change]], anchor: Anchor) -> None:
        """Write changes, each with the version that made it, and the point up to which the ledger counts now.

        Raises:
            OSError: the store cannot be written.
        """
        now = int(time.time() * 1e6)
        common = {"table": anchor.table, "recorded_at": now}
        rows = [{**row, **common, "table_version": at} for at, change in changes for row in _rows(change)]
        rows.append({**common, "kind": _NOTHING, "table_version": anchor.version, "commit": anchor.commit})
        data = pa.concat_tables([self._carried, pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)])
        data = data.cast(marked(LEDGER_SCHEMA, _ROLE, anchor.table))
        if self._is_damaged:
            self._ref.storage.filesystem(self._ref.uri).rm(self._ref.uri, recursive=True)
            self._is_damaged = False
        # A retry after a lost response can write a row twice. Readers count it once.
        retry(lambda: append_rows(self._ref, data, overwrite=self._start_anew), self._ref.uri)
        self._start_anew, self._carried = False, LEDGER_SCHEMA.empty_table()

    def compact(self) -> None:
        """Merge the ledger's small files if it has more than 64 of them."""
        dataset = open_dataset(self._ref, missing_ok=True)
        if dataset is not None and len(dataset.get_fragments()) > _COMPACT_ABOVE_FRAGMENTS:
            dataset.optimize.compact_files()
            dataset.cleanup_old_versions()

    def _read(self, rows: pa.Table, *, is_old: bool) -> Stored | None:
        anchor = _old_anchor(rows) if is_old else _anchor(rows)
        if anchor is None:
            return None
        rows = rows.filter(pc.less_equal(rows["table_version"], anchor.version))
        coverage = _replay(rows.sort_by([(name, "ascending") for name in ("table_version", "kind")]))
        self._start_anew = is_old
        if is_old:
            coverage.count_all_rejects()
            tokens = list(_rows(Change(rejecting=coverage.rejecting)))
            tokens = [row | {"table_version": anchor.version} for row in tokens]
            self._carried = pa.concat_tables([_in_new_layout(rows), pa.Table.from_pylist(tokens, schema=LEDGER_SCHEMA)])
        return Stored(coverage=coverage, anchor=anchor, is_old=is_old)


def _anchor(rows: pa.Table) -> Anchor | None:
    found = rows.filter(pc.and_(pc.equal(rows["kind"], _NOTHING), pc.is_valid(rows["commit"])))
    if found.num_rows == 0:
        return None
    row = found.sort_by([("table_version", "descending")]).slice(0, 1).to_pylist()[0]
    return Anchor(table=row["table"], version=row["table_version"], commit=row["commit"])


def _old_anchor(rows: pa.Table) -> Anchor:
    return Anchor(table=None, version=pc.max(rows["table_version"]).as_py() or 0, commit=None)


def _in_new_layout(rows: pa.Table) -> pa.Table:
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in LEDGER_SCHEMA
    ]
    return pa.table(columns, schema=LEDGER_SCHEMA)


def _replay(rows: pa.Table) -> Coverage:
    """What is settled after all changes, in order; a row that stands twice is counted once."""
    coverage = Coverage()
    version, seen = 0, set[tuple[object, ...]]()
    for batch in rows.to_batches(max_chunksize=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            if row["table_version"] > version:
                version, seen = row["table_version"], set()
            identity = tuple(row[name] for name in ("kind", "shard", "start", "stop"))
            if identity not in seen:
                seen.add(identity)
                coverage.apply(_change(row))
    return coverage


def _rows(change: Change) -> Iterator[dict[str, object]]:
    for removal in change.removals:
        yield {**_of_shard(removal.shard, change), "kind": _REMOVED, "start": removal.start, "stop": removal.stop}  | {
            "last": False, "written": removal.rows, "rejected": 0,
        }  # fmt: skip
    for claim in change.claims:
        yield {**_of_shard(claim.shard, change), "kind": _SETTLED, **asdict(claim)}
    for part in change.rejecting:
        yield {"kind": _TOKENS, **asdict(part)}


def _of_shard(shard: str, change: Change) -> dict[str, object]:
    return {"shard": shard, "uri": change.files.get(file_of(shard))}


def _change(row: dict[str, Any]) -> Change:
    if row["kind"] == _NOTHING:
        return Change()
    if row["kind"] == _TOKENS:
        part = Rejecting(shard=row["shard"], start=row["start"], stop=row["stop"], token=row["token"])
        return Change(rejecting=(part,))
    files = {file_of(row["shard"]): row["uri"]} if row["uri"] else {}
    if row["kind"] == _REMOVED:
        removal = Removal(shard=row["shard"], start=row["start"], stop=row["stop"], rows=row["written"])
        return Change(removals=(removal,), files=files)
    names = ("shard", "start", "stop", "last", "written", "rejected")
    return Change(claims=(Claim(**{name: row[name] for name in names}),), files=files)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
