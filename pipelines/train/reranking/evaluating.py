"""The gain of a cross-encoder on a table: the best entries of some queries are re-ranked and compared."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from encoders.cross import CrossEncoder
from pipelines.rows.contract import CAPTION, IMAGE_URI, TEXT_VECTOR, THUMBNAIL
from pipelines.sources.row_pictures import ReadPictures, decoded
from pipelines.store.storage import TableRef
from pipelines.train.evaluation.bootstrap import Difference, paired_difference
from pipelines.train.evaluation.evaluate import EvaluationSettings, RetrievalTask, image_to_text, select, text_to_image
from pipelines.train.evaluation.metrics import Ranks, per_query, summary
from pipelines.train.evaluation.ranking import positive_ranks, top_entries
from pipelines.train.evaluation.selection import EvaluatedRows, Gallery, Index, read_vectors

if TYPE_CHECKING:
    import lance
    from PIL.Image import Image

_COMPARED = ("R@1", "R@5", "R@10", "MRR", "nDCG@10")
_PICTURES_KEPT = 512


@dataclass(frozen=True, kw_only=True)
class Reranked:
    """One direction of retrieval, by vectors alone and re-ranked.

    Attributes:
        queries: number of queries, sampled by the seed.
        depth: number of each query's best entries that were re-ranked.
        within_depth: share of the queries with a positive among these entries, the upper bound of re-ranked recall.
        first: metrics by vectors alone.
        reranked: metrics after re-ranking.
        gains: differences of the metrics (re-ranked minus first), with intervals.
    """

    queries: int
    depth: int
    within_depth: float
    first: dict[str, float]
    reranked: dict[str, float]
    gains: dict[str, Difference]

    def to_rows(self) -> dict[str, dict[str, float]]:
        """JSON-ready data: each metric before and after re-ranking, and its gain with the 95 % interval."""
        return {
            name: {
                "first": self.first[name],
                "reranked": self.reranked[name],
                "gain": gain.mean,
                "low": gain.low,
                "high": gain.high,
                "p_value": gain.p_value,
                "queries": float(self.queries),
                "best_possible": self.within_depth,
            }
            for name, gain in self.gains.items()
        }


def evaluate_reranked(
    ref: TableRef,
    settings: EvaluationSettings,
    model: CrossEncoder,
    read: ReadPictures,
    *,
    depth: int,
    queries: int,
) -> dict[str, Reranked]:
    """Evaluate a table's vectors in both directions, with a cross-encoder as the second stage.

    Args:
        ref: the table.
        settings: which rows are queries and in the gallery; `folds` and `slices` have no effect.
        model: the cross-encoder.
        read: reads the pictures of rows.
        depth: number of a query's best entries to re-rank.
        queries: the most queries; each costs `depth` forward passes.

    Returns:
        The results by direction, `text_to_image` and `image_to_text`.

    Raises:
        FileNotFoundError: the table or the version does not exist.
        ValueError: the table's vectors cannot be compared, or no row is selected.
    """
    dataset, rows = select(ref, settings)
    tasks = {"text_to_image": text_to_image(rows), "image_to_text": image_to_text(rows)}
    return {
        name: _Direction(dataset, rows, _some(task, queries, settings.seed), settings, read).run(model, depth)
        for name, task in tasks.items()
        if len(task.queries)
    }


def _some(task: RetrievalTask, count: int, seed: int) -> RetrievalTask:
    """The task with a random choice of at most `count` of its queries."""
    if len(task.queries) <= count:
        return task
    kept = np.sort(np.random.default_rng(seed).permutation(len(task.queries))[:count])
    mine = np.isin(task.positive_query, kept)
    return replace(
        task,
        queries=task.queries[kept],
        positive_query=np.searchsorted(kept, task.positive_query[mine]),
        positive_entry=task.positive_entry[mine],
    )


class _Direction:
    """One direction: its queries and gallery as places among the rows, scored by the cross-encoder."""

    def __init__(
        self,
        dataset: lance.LanceDataset,
        rows: EvaluatedRows,
        task: RetrievalTask,
        settings: EvaluationSettings,
        read: ReadPictures,
    ) -> None:
        self._dataset, self._rows, self._task, self._settings, self._read = dataset, rows, task, settings, read
        self._seen: OrderedDict[int, Image | None] = OrderedDict()

    def run(self, model: CrossEncoder, depth: int) -> Reranked:
        task = self._task
        vectors = read_vectors(self._dataset, self._rows.offset[task.queries], task.query_column)
        gallery = Gallery(
            self._dataset, self._rows.offset[task.gallery], task.gallery_column, self._settings.block_rows
        )
        before = positive_ranks(vectors, gallery, task.positive_query, task.positive_entry)
        after = before.copy()
        for query, entries in enumerate(top_entries(vectors, gallery, depth)):
            order = np.argsort(-self._scores(model, query, entries), kind="stable")
            mine = np.flatnonzero((task.positive_query == query) & (before <= len(entries)))
            rank_of = {int(entry): rank for rank, entry in enumerate(entries[order], start=1)}
            after[mine] = [rank_of[int(entry)] for entry in task.positive_entry[mine]]
        ranks = [Ranks.of(task.positive_query, found, len(task.queries)) for found in (before, after)]
        values = [per_query(one) for one in ranks]
        clusters = self._rows.item[task.queries]
        return Reranked(
            queries=len(task.queries),
            depth=min(depth, len(gallery)),
            within_depth=float((ranks[0].first <= depth).mean()),
            first=summary(ranks[0]),
            reranked=summary(ranks[1]),
            gains={
                name: paired_difference(values[0][name], values[1][name], clusters, self._settings.seed)
                for name in _COMPARED
            },
        )

    def _scores(self, model: CrossEncoder, query: int, entries: Index) -> NDArray[np.float64]:
        """How well each entry matches the query; entries that cannot be read come last."""
        asks, answers = int(self._task.queries[query]), self._task.gallery[entries]
        if self._task.query_column == TEXT_VECTOR:
            text = self._captions(np.array([asks]))[0]
            pairs = [(i, picture, text) for i, picture in enumerate(self._pictures(answers))]
        else:
            picture = self._pictures(np.array([asks]))[0]
            pairs = [(i, picture, text) for i, text in enumerate(self._captions(answers))]
        readable = [(i, picture, text) for i, picture, text in pairs if picture is not None]
        scores = np.full(len(entries), -np.inf)
        if readable:
            places, pictures, texts = zip(*readable, strict=True)
            scores[list(places)] = model.score(pictures, texts)
        return scores

    def _captions(self, places: Index) -> list[str]:
        rows = self._dataset.take(self._rows.offset[places].tolist(), columns=[CAPTION])
        return [str(text) for text in rows[CAPTION].to_pylist()]

    def _pictures(self, places: Index) -> list[Image | None]:
        """Pictures of rows; recently read ones are cached, the others are read in one call."""
        new = [int(place) for place in dict.fromkeys(places.tolist()) if place not in self._seen]
        if new:
            thumbnail = [THUMBNAIL] if THUMBNAIL in self._dataset.schema.names else []
            rows = self._dataset.take(self._rows.offset[new].tolist(), columns=[IMAGE_URI, *thumbnail])
            self._seen.update(zip(new, decoded(rows, self._read), strict=True))
        found = [self._seen[int(place)] for place in places]
        while len(self._seen) > _PICTURES_KEPT:
            self._seen.popitem(last=False)
        return found
