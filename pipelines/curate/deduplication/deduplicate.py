"""Find the rows of a table that add nothing to an earlier row, and mark them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.curate.deduplication.cells import Table, leaders_by_cells, share_missed
from pipelines.curate.deduplication.contents import MODALITIES, NOTHING, By, Contents, read_contents
from pipelines.curate.deduplication.leaders import KEPT, Leaders, find_leaders
from pipelines.curate.deduplication.marking import Marks, addresses_of, check_markable, write_marks
from pipelines.rows.contract import ROW_ID, VECTOR_COLUMNS
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_dataset
from pipelines.tables.provenance import Provenance

if TYPE_CHECKING:
    import lance

Method = Literal["auto", "exact", "cells"]
# Half the pairs of these are compared in minutes, and their vectors fit a worker.
_EXACT_UP_TO_ROWS = 140_000
_SAMPLE = 256


@dataclass(frozen=True)
class Group:
    """A row, and those that say it again.

    Attributes:
        row_id: the row that stands for all.
        duplicates: the others' ids, the most similar first.
        scores: how similar each is.
    """

    row_id: str
    duplicates: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Deduplicated:
    """What was found.

    Attributes:
        table: the table.
        version: the version that holds the marks; the one looked at where nothing was written.
        rows: that were looked at.
        kept: rows that are no duplicates.
        exact: duplicates with the very same content.
        near: duplicates by their vectors.
        groups: rows that stand for others.
        method: `exact` or `cells`.
        recall: the share of near-duplicates that were found, measured on a sample; 1 where all were compared.
        largest: the largest groups.
    """

    table: str
    version: int
    rows: int
    kept: int
    exact: int
    near: int
    groups: int
    method: str
    recall: float
    largest: tuple[Group, ...]


def deduplicate(
    table: TableRef,
    *,
    by: By = "image",
    threshold: float = 0.95,
    method: Method = "auto",
    mark: bool = True,
    groups: int = 10,
    seed: int = 0,
) -> Deduplicated:
    """Mark the rows that add nothing to an earlier row: `duplicate_of` names it, `duplicate_score` says how near.

    A row is kept if its content is not near that of a kept row before it. Further captions of a kept picture are kept
    too: they say something new. Rows without the vectors that are compared are not looked at.

    Args:
        table: the table.
        by: pictures, captions, or both at once.
        threshold: cosine from which on two contents count as the same; above 1 for the very same alone.
        method: `exact` compares all with all; `cells` those that k-means puts together; `auto` goes by the rows.
        mark: whether to write the marks.
        groups: how many of the largest groups to tell.
        seed: of samples.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it has no such vectors, or columns of its own with the marks' names.
        LeaseHeldError: a job writes to the table.
        TableMovedError: it changed meanwhile. Nothing was marked.
    """
    dataset = open_dataset(table)
    check_comparable(dataset, table, by)
    if mark:
        check_markable(dataset, table)
    chosen = method if method != "auto" else plan_method(dataset.count_rows())
    contents = read_contents(dataset, by, hold=chosen == "exact")
    leaders, recall = _compare(dataset, table, contents, by, threshold, chosen, seed)
    original, score = originals(contents, leaders)
    places = np.flatnonzero(original != KEPT)
    ids = dataset.to_table(columns=[ROW_ID])[ROW_ID].combine_chunks()
    version = int(dataset.version)
    if mark:
        marks = Marks(version, addresses_of(dataset)[places], ids.take(pa.array(original[places])), score[places])
        settings = {"by": by, "threshold": threshold, "version": version, "rows": len(contents.offset)}
        version = write_marks(table, marks, settings)
    is_exact = contents.content[places] == contents.content[original[places]]
    return Deduplicated(
        table=str(table),
        version=version,
        rows=int((contents.content != NOTHING).sum()),
        kept=int((contents.content != NOTHING).sum()) - len(places),
        exact=int(is_exact.sum()),
        near=int((~is_exact).sum()),
        groups=len(np.unique(original[places])),
        method=chosen,
        recall=recall,
        largest=_largest(original, score, ids, groups),
    )


def check_comparable(dataset: lance.LanceDataset, table: TableRef, by: By) -> None:
    """Refuse a table without the vectors that are to be compared.

    Raises:
        ValueError: names the column.
    """
    there = Provenance.from_schema(dataset.schema, str(table)).vector_columns()
    for modality in MODALITIES[by]:
        if VECTOR_COLUMNS[modality] not in there:
            raise ValueError(
                f"by {by!r}: table {table} has no {VECTOR_COLUMNS[modality]}; it has {', '.join(there) or 'no vectors'}"
            )


def plan_method(rows: int) -> Literal["exact", "cells"]:
    """How a table of so many rows is compared."""
    return "exact" if rows <= _EXACT_UP_TO_ROWS else "cells"


def originals(contents: Contents, leaders: Leaders) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The row that stands for each row, and how near the two are.

    Args:
        contents: of the rows.
        leaders: of the contents.

    Returns:
        int64 (rows,), a place, −1 for a row that is kept or was not looked at; and float32 (rows,).
    """
    content = contents.content
    there = content != NOTHING
    root = np.where(leaders.leader == KEPT, np.arange(len(contents)), leaders.leader)
    original = np.full(len(content), KEPT, np.int64)
    original[there] = contents.first[root[content[there]]]
    score = np.ones(len(content), np.float32)
    score[there] = leaders.score[content[there]]
    same_content = there & (content == content[original])
    is_kept = same_content & (contents.item == contents.item[original]) & ~contents.repeats()
    original[is_kept] = KEPT
    return original, score


def _compare(
    dataset: lance.LanceDataset,
    table: TableRef,
    contents: Contents,
    by: By,
    threshold: float,
    method: str,
    seed: int,
) -> tuple[Leaders, float]:
    """The leaders of all contents, and the share of the near-duplicates that were found."""
    nobody = Leaders(np.full(len(contents), KEPT, np.int64), np.ones(len(contents), np.float32))
    if threshold > 1 or len(contents) < 2:
        return nobody, 1.0
    if method == "exact":
        assert contents.vectors is not None
        return find_leaders(contents.vectors, threshold), 1.0
    from pipelines.cluster.session import ensure_ray

    ensure_ray()
    read = Table(ref=table, version=int(dataset.version), modalities=MODALITIES[by])
    leaders = leaders_by_cells(read, contents, threshold, seed)
    found = int((leaders.leader != KEPT).sum())
    kept = len(contents) - found
    missed = share_missed(read, contents, leaders, threshold, _SAMPLE, seed) * kept
    return leaders, round(found / (found + missed), 4) if found + missed else 1.0


def _largest(original: NDArray[np.int64], score: NDArray[np.float32], ids: pa.Array, count: int) -> tuple[Group, ...]:
    places = np.flatnonzero(original != KEPT)
    standing, sizes = np.unique(original[places], return_counts=True)
    chosen: Sequence[int] = standing[np.argsort(-sizes, kind="stable")[:count]].tolist()
    found = []
    for row in chosen:
        members = places[original[places] == row]
        members = members[np.argsort(-score[members], kind="stable")]
        found.append(
            Group(
                row_id=ids[row].as_py(),
                duplicates=tuple(ids.take(pa.array(members)).to_pylist()),
                scores=tuple(round(float(value), 4) for value in score[members]),
            )
        )
    return tuple(found)
