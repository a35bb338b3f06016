"""The marks in the table: two columns, written in one commit under the table's lease; other columns do not change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.store.retries import retried
from pipelines.store.storage import TableRef
from pipelines.tables.columns import Rewritten, TableMovedError, rewrite_columns
from pipelines.tables.lease import Lease
from pipelines.tables.opening import open_at, open_dataset, translate

if TYPE_CHECKING:
    import lance

DUPLICATE_OF, DUPLICATE_SCORE = "duplicate_of", "duplicate_score"
MARKS = pa.schema([pa.field(DUPLICATE_OF, pa.string()), pa.field(DUPLICATE_SCORE, pa.float32())])
_KEY = "isthmus.deduplicated"


@dataclass(frozen=True)
class Marks:
    """The marks to write, for the rows of one version of a table.

    Attributes:
        version: version of the table.
        address: uint64 (m,), Lance's address of each duplicate row, ascending.
        original: (m,), id of the kept row that it repeats.
        score: float32 (m,), similarity of the two.
    """

    version: int
    address: NDArray[np.uint64]
    original: pa.Array
    score: NDArray[np.float32]


def check_markable(dataset: lance.LanceDataset, table: TableRef) -> None:
    """Refuse a table whose own columns have the names of the marks.

    Raises:
        ValueError: such a column exists; the message names it.
    """
    if _KEY in dataset.config():
        return
    for field in MARKS:
        if field.name in dataset.schema.names:
            raise ValueError(
                f"table {table}: has a column {field.name!r} of its own, which the marks would overwrite; rename it in "
                "the corpus and embed into a new table"
            )


def last_run(dataset: lance.LanceDataset) -> dict[str, Any] | None:
    """The settings of the last run that marked this table; None if there was none."""
    raw = dataset.config().get(_KEY)
    return json.loads(raw) if raw else None


def write_marks(table: TableRef, marks: Marks, settings: Mapping[str, Any]) -> int:
    """Replace the marks in the table; returns its new version.

    Args:
        table: the table.
        marks: marks for one of its versions.
        settings: record of the run, stored in the table's config.

    Raises:
        LeaseHeldError: a job is writing to the table.
        TableMovedError: rows were added or removed since the version of the marks. Nothing was marked.
        OSError: the store cannot be read or written.
    """
    lease = Lease.acquire(table)
    try:
        dataset = open_dataset(table)
        check_markable(dataset, table)
        _check_unmoved(dataset, marks.version, table)
        if any(field.name not in dataset.schema.names for field in MARKS):
            # Record the columns before adding them: after a crash in between, the next run knows them as its own.
            dataset.update_config({_KEY: json.dumps(dict(settings))})
            dataset = open_dataset(table)
            dataset.add_columns([field for field in MARKS if field.name not in dataset.schema.names])
            dataset = open_dataset(table)
        _commit(table, dataset, marks)
        # A separate commit, because no commit of Lance changes both columns and config.
        open_dataset(table).update_config({_KEY: json.dumps(dict(settings))})
        return int(open_dataset(table).version)
    except OSError as error:
        raise translate(error, table.uri) from error
    finally:
        lease.release()


def _check_unmoved(dataset: lance.LanceDataset, version: int, table: TableRef) -> None:
    """Check that the fragments and their deletions have not changed.

    Raises:
        TableMovedError: they have changed.
    """
    then = open_at(table, version)
    if _rows_of(then) != _rows_of(dataset):
        raise TableMovedError(
            f"table {table}: changed from version {version} to {dataset.version} meanwhile; nothing was marked, "
            "run again"
        )


def _rows_of(dataset: lance.LanceDataset) -> list[tuple[int, int, int]]:
    return [(f.fragment_id, f.physical_rows, f.num_deletions) for f in dataset.get_fragments()]


def _commit(table: TableRef, dataset: lance.LanceDataset, marks: Marks) -> None:
    """Write both columns of all fragments whose marks change, and commit them on exactly this version."""
    rewritten: list[Rewritten] = []
    for fragment in dataset.get_fragments():
        rows = fragment.scanner(columns=MARKS.names, with_row_id=True, with_row_address=True).to_table()
        wanted = _marks_of(rows["_rowaddr"].to_numpy(), marks)
        if not wanted.equals(rows.select(MARKS.names).combine_chunks()):
            rewritten.append(fragment.update_columns(wanted.append_column("_rowid", rows["_rowid"])))
    if rewritten:
        rewrite_columns(table, dataset, rewritten)


def _marks_of(addresses: NDArray[np.uint64], marks: Marks) -> pa.Table:
    """The two columns of marks for some rows."""
    at = np.searchsorted(marks.address, addresses)
    at[at == len(marks.address)] = 0
    found = marks.address[at] == addresses if len(marks.address) else np.zeros(len(addresses), bool)
    taken = pa.array(at, mask=~found)
    scores = pa.array(marks.score, pa.float32())
    return pa.table([marks.original.take(taken), scores.take(taken)], schema=MARKS)


@retried
def addresses_of(dataset: lance.LanceDataset) -> NDArray[np.uint64]:
    """Lance's address of each row, uint64 (rows,), in the order of the scan."""
    scanner = dataset.scanner(columns=[], with_row_address=True, scan_in_order=True)
    found: NDArray[np.uint64] = scanner.to_table()["_rowaddr"].to_numpy()
    return found
