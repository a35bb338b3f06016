"""Evaluation of a table: text → image, image → text, and image → image if a column groups pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.rows.contract import IMAGE_VECTOR, ITEM_ID, TEXT_VECTOR
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_at
from pipelines.tables.provenance import Provenance
from pipelines.train.evaluation.bootstrap import interval
from pipelines.train.evaluation.metrics import Ranks, chance_recall, per_query, summary
from pipelines.train.evaluation.ranking import joined, positive_ranks
from pipelines.train.evaluation.selection import (
    EvaluatedRows,
    Gallery,
    Index,
    first_of,
    gallery_of,
    read_rows,
    read_vectors,
)

if TYPE_CHECKING:
    import lance

_INTERVALS = ("R@1", "R@5", "R@10", "MRR", "mAP", "nDCG@10")
_CURVE = 50


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What to evaluate.

    Attributes:
        version: version of the table, a number or a tag; None is the latest.
        where: SQL filter of the rows that are queries and also in the gallery.
        gallery_where: SQL filter of further rows for the gallery; these need only a picture or a caption.
        relevant: column; rows with equal values in it answer each other.
        slices: columns; metrics are also given for each of their values.
        folds: number of parts, by items in order, that are evaluated separately and averaged.
        seed: seed of the bootstrap.
        block_rows: rows of the gallery in memory at once.
    """

    version: int | str | None = None
    where: str | None = None
    gallery_where: str | None = None
    relevant: str = ITEM_ID
    slices: tuple[str, ...] = ()
    folds: int = 1
    seed: int = 0
    block_rows: int = 8_192


@dataclass(frozen=True, kw_only=True)
class DirectionResult:
    """The result of one direction of retrieval.

    Attributes:
        metrics: metrics by name.
        intervals: 95 % bootstrap intervals (low, high) by name of the metric.
        queries: number of queries.
        gallery: number of entries in the gallery.
        chance: Recall@10 of a random order.
        query_ids: names of the queries that are equal in every table of the corpus: row ids of captions, item ids of
            pictures.
        clusters: (queries,), code of each query's picture.
        best_ranks: (queries,), rank of the first positive, from 1.
        values: each metric by query, (queries,).
        slices: metrics by column and value.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    queries: int
    gallery: int
    chance: float
    query_ids: list[str]
    clusters: Index
    best_ranks: Index
    values: dict[str, NDArray[np.float64]]
    slices: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data, without the values of single queries."""
        return {
            **self.metrics,
            "queries": self.queries,
            "gallery": self.gallery,
            "chance_R@10": self.chance,
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            **({"slices": self.slices} if self.slices else {}),
        }

    def curve(self) -> list[float]:
        """Recall@K for K = 1 … 50."""
        return [float((self.best_ranks <= k).mean()) for k in range(1, _CURVE + 1)]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of an evaluated table, by direction."""

    table: str
    version: int
    encoder: str
    settings: EvaluationSettings
    directions: dict[str, DirectionResult]

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON-ready data."""
        return {
            "table": self.table,
            "version": self.version,
            "encoder": self.encoder,
            "settings": asdict(self.settings),
            **{name: result.to_dict() for name, result in self.directions.items()},
        }


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """One direction before ranking: queries, gallery and positives, as places among the rows.

    `positive_query` and `positive_entry` (positives,) pair a query with an entry that answers it. `own_entry`
    (queries,) is the entry that a query must skip: itself.
    """

    queries: Index
    gallery: Index
    query_column: str
    gallery_column: str
    positive_query: Index
    positive_entry: Index
    own_entry: Index | None = None


def evaluate_table(ref: TableRef, settings: EvaluationSettings) -> Evaluation:
    """Evaluate the vectors of a table.

    Raises:
        FileNotFoundError: the table or the version does not exist.
        ValueError: the table's vectors cannot be compared, or no row is selected.
    """
    dataset, rows = select(ref, settings)
    parts = [_evaluate(dataset, part, settings) for part in _folds(rows, settings.folds)]
    return Evaluation(
        table=str(ref),
        version=int(dataset.version),
        encoder=Provenance.from_schema(dataset.schema, str(ref)).encoder.name,
        settings=settings,
        directions={name: _averaged([part[name] for part in parts], settings) for name in parts[0]},
    )


def select(ref: TableRef, settings: EvaluationSettings) -> tuple[lance.LanceDataset, EvaluatedRows]:
    """The table at its version, and the rows that are queries or in the gallery.

    Raises:
        FileNotFoundError: the table or the version does not exist.
        ValueError: the table's vectors cannot be compared, or no row is selected.
    """
    dataset = open_at(ref, settings.version)
    rows = read_rows(
        dataset,
        where=settings.where,
        gallery_where=settings.gallery_where,
        relevant=settings.relevant,
        slices=settings.slices,
        table=str(ref),
    )
    return dataset, rows


def _evaluate(
    dataset: lance.LanceDataset, rows: EvaluatedRows, settings: EvaluationSettings
) -> dict[str, DirectionResult]:
    tasks = {"text_to_image": text_to_image(rows), "image_to_text": image_to_text(rows)}
    if settings.relevant != ITEM_ID:
        tasks["image_to_image"] = _image_to_image(rows)
    return {name: _rank(dataset, rows, task, settings) for name, task in tasks.items() if len(task.queries)}


def text_to_image(rows: EvaluatedRows) -> RetrievalTask:
    """Queries: the captions of each picture. Positives: pictures with the same value or with the same caption."""
    asking = np.flatnonzero(rows.asks)
    kept, _ = first_of(_paired(rows.text[asking], rows.item[asking]))
    queries = asking[kept]
    gallery, entry_of = gallery_of(rows.item, rows.has_image)
    relevant = joined(rows.relevant[queries], rows.relevant)
    said = joined(rows.text[queries], rows.text)
    query = np.concatenate([relevant[0], said[0]])
    entry = entry_of[np.concatenate([relevant[1], said[1]])]
    return _task(queries, gallery, TEXT_VECTOR, IMAGE_VECTOR, query, entry)


def image_to_text(rows: EvaluatedRows) -> RetrievalTask:
    """Queries: the pictures. Positives: the captions of the picture, or of pictures with the same value."""
    asking = np.flatnonzero(rows.asks)
    kept, _ = first_of(rows.item[asking])
    queries = asking[kept]
    gallery, entry_of = gallery_of(rows.text, rows.has_text)
    relevant = joined(rows.relevant[queries], rows.relevant)
    own = joined(rows.item[queries], rows.item)
    query = np.concatenate([relevant[0], own[0]])
    entry = entry_of[np.concatenate([relevant[1], own[1]])]
    return _task(queries, gallery, IMAGE_VECTOR, TEXT_VECTOR, query, entry)


def _image_to_image(rows: EvaluatedRows) -> RetrievalTask:
    """Queries: the pictures that share their value with another picture. Positives: those other pictures."""
    gallery, _ = gallery_of(rows.item, rows.has_image)
    query, entry = joined(rows.relevant[gallery], rows.relevant[gallery])
    other = (query != entry) & rows.asks[gallery[query]]
    query, entry = query[other], entry[other]
    asking = np.unique(query)
    own = asking.copy()
    return _task(
        gallery[asking], gallery, IMAGE_VECTOR, IMAGE_VECTOR, np.searchsorted(asking, query), entry, own_entry=own
    )


def _task(
    queries: Index, gallery: Index, asks: str, answers: str, query: Index, entry: Index, own_entry: Index | None = None
) -> RetrievalTask:
    """A direction with each positive once; positives that are not in the gallery are dropped."""
    query, entry = query[entry >= 0], entry[entry >= 0]
    pairs = np.unique(np.stack([query, entry], axis=1), axis=0) if len(query) else np.zeros((0, 2), np.int64)
    return RetrievalTask(
        queries=queries,
        gallery=gallery,
        query_column=asks,
        gallery_column=answers,
        positive_query=pairs[:, 0],
        positive_entry=pairs[:, 1],
        own_entry=own_entry,
    )


def _rank(
    dataset: lance.LanceDataset, rows: EvaluatedRows, task: RetrievalTask, settings: EvaluationSettings
) -> DirectionResult:
    queries = read_vectors(dataset, rows.offset[task.queries], task.query_column)
    gallery = Gallery(dataset, rows.offset[task.gallery], task.gallery_column, settings.block_rows)
    found = positive_ranks(queries, gallery, task.positive_query, task.positive_entry, task.own_entry)
    ranks = Ranks.of(task.positive_query, found, len(task.queries))
    values = per_query(ranks)
    clusters = rows.item[task.queries]
    entries = len(gallery) - (task.own_entry is not None)
    return DirectionResult(
        metrics=summary(ranks),
        intervals={name: interval(values[name], clusters, settings.seed) for name in _INTERVALS},
        queries=len(task.queries),
        gallery=entries,
        chance=chance_recall(entries, ranks.counts),
        query_ids=_named(dataset, rows, task),
        clusters=clusters,
        best_ranks=ranks.first,
        values=values,
        slices={name: _sliced(column.take(task.queries).to_pylist(), values) for name, column in rows.slices.items()},
    )


def _named(dataset: lance.LanceDataset, rows: EvaluatedRows, task: RetrievalTask) -> list[str]:
    """Names of the queries; a picture's name must not depend on which of its rows comes first in a table."""
    row_ids = rows.row_id.take(task.queries).to_pylist()
    if task.query_column == TEXT_VECTOR:
        return row_ids
    items = dataset.take(rows.offset[task.queries].tolist(), columns=[ITEM_ID])[ITEM_ID].to_pylist()
    return [row_id if item is None else str(item) for item, row_id in zip(items, row_ids, strict=True)]


def _sliced(labels: list[Any], values: dict[str, NDArray[np.float64]]) -> dict[str, dict[str, float]]:
    """Metrics of the queries of each value of a column."""
    names = np.array([str(label) for label in labels])
    return {
        str(name): {metric: float(v[names == name].mean()) for metric, v in values.items()}
        | {"queries": float((names == name).sum())}
        for name in sorted(set(names.tolist()))
    }


def _averaged(parts: list[DirectionResult], settings: EvaluationSettings) -> DirectionResult:
    """The mean over the folds, with the queries of all folds."""
    if len(parts) == 1:
        return parts[0]
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    clusters = np.concatenate([part.clusters for part in parts])
    return DirectionResult(
        metrics={n: float(np.mean([part.metrics[n] for part in parts])) for n in parts[0].metrics},
        intervals={name: interval(values[name], clusters, settings.seed) for name in _INTERVALS},
        queries=sum(part.queries for part in parts),
        gallery=round(float(np.mean([part.gallery for part in parts]))),
        chance=float(np.mean([part.chance for part in parts])),
        query_ids=[row_id for part in parts for row_id in part.query_ids],
        clusters=clusters,
        best_ranks=np.concatenate([part.best_ranks for part in parts]),
        values=values,
        slices={name: _pooled([part.slices[name] for part in parts]) for name in parts[0].slices},
    )


def _pooled(parts: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Metrics of each value of a column, over the queries of all folds."""
    pooled = {}
    for value in sorted({value for part in parts for value in part}):
        found = [part[value] for part in parts if value in part]
        weights = np.array([one["queries"] for one in found])
        pooled[value] = {m: float(np.average([one[m] for one in found], weights=weights)) for m in found[0]}
        pooled[value]["queries"] = float(weights.sum())
    return pooled


def _folds(rows: EvaluatedRows, count: int) -> list[EvaluatedRows]:
    """The rows in parts with equal numbers of items, in the table's order."""
    if count == 1:
        return [rows]
    first, entry_of = first_of(rows.item)
    if count > len(first):
        raise ValueError(f"folds {count}: only {len(first)} items are selected; give at most that many")
    fold = entry_of * count // len(first)
    return [_subset(rows, np.flatnonzero(fold == i)) for i in range(count)]


def _subset(rows: EvaluatedRows, places: Index) -> EvaluatedRows:
    return EvaluatedRows(
        offset=rows.offset[places],
        item=rows.item[places],
        text=rows.text[places],
        relevant=rows.relevant[places],
        asks=rows.asks[places],
        has_image=rows.has_image[places],
        has_text=rows.has_text[places],
        row_id=rows.row_id.take(places),
        slices={name: column.take(places) for name, column in rows.slices.items()},
    )


def _paired(a: Index, b: Index) -> Index:
    """One code for each pair of codes, int64 (n,)."""
    with np.errstate(over="ignore"):
        return a * np.int64(0x2545F4914F6CDD1D) ^ (b + np.int64(0x632BE59BD9B4E019))
