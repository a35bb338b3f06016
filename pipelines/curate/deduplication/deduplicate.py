"""Finds the rows of a table that add nothing to an earlier row, and marks them."""

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
# Comparing all pairs of this many rows takes minutes, and their vectors fit in a worker.
_EXACT_UP_TO_ROWS = 140_000
_SAMPLE = 256


@dataclass(frozen=True)
class Group:
    """A row and its duplicates.

    Attributes:
        row_id: the row that is kept.
        duplicates: ids of its duplicates, the most similar first.
        scores: similarity of each duplicate to the kept row, a cosine.
    """

    row_id: str
    duplicates: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Deduplicated:
    """The results of deduplication.

    Attributes:
        table: the table.
        version: the version that holds the marks; without marks, the version that was read.
        rows: number of rows that were compared.
        kept: number of rows that are not duplicates.
        exact: number of duplicates with equal content.
        near: number of duplicates by their vectors.
        groups: number of kept rows that have duplicates.
        method: `exact` or `cells`.
        recall: share of the near-duplicates that were found, measured on a sample; 1 if all pairs were compared.
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
    """Mark the rows that add nothing to an earlier row: `duplicate_of` names that row, `duplicate_score` the cosine.

    A row is kept if its content is not near that of an earlier kept row. Further captions of a kept picture are also
    kept, because they add information. Rows without the compared vectors are ignored.

    Args:
        table: the table.
        by: what to compare: pictures (`image`), captions (`text`), or `both`.
        threshold: least cosine at which two contents count as the same; above 1, only equal contents do.
        method: `exact` compares all pairs; `cells` only pairs in one k-means cell; `auto` decides by the number of
            rows.
        mark: whether to write the marks.
        groups: number of the largest groups to report.
        seed: seed of the samples.

    Raises:
        FileNotFoundError: the table does not exist.
        ValueError: the table lacks the vectors, or has columns of its own with the names of the marks.
        LeaseHeldError: a job is writing to the table.
        TableMovedError: the table changed meanwhile. Nothing was marked.
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
    """Refuse a table that lacks the vectors to compare.

    Raises:
        ValueError: a vector column is missing; the message names it.
    """
    there = Provenance.from_schema(dataset.schema, str(table)).vector_columns()
    for modality in MODALITIES[by]:
        if VECTOR_COLUMNS[modality] not in there:
            raise ValueError(
                f"by {by!r}: table {table} has no {VECTOR_COLUMNS[modality]}; it has {', '.join(there) or 'no vectors'}"
            )


def plan_method(rows: int) -> Literal["exact", "cells"]:
    """The method for a table of `rows` rows."""
    return "exact" if rows <= _EXACT_UP_TO_ROWS else "cells"


def originals(contents: Contents, leaders: Leaders) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The kept row that each duplicate repeats, and their similarity.

    Args:
        contents: the contents of the rows.
        leaders: the leaders of the contents.

    Returns:
        int64 (rows,), place of the kept row, −1 for a row that is kept or was not compared; and float32 (rows,).
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
