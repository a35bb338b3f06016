"""Metrics of retrieval as pure functions of ranks.

A query has one or more positives; their ranks in the gallery count from 1. Recall@K in retrieval means "any positive in
the top K" (hit rate), as in the papers on Flickr30k and COCO, not the share of positives found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
RECALL_AT = (1, 5, 10)
_DEPTH = 10


@dataclass(frozen=True)
class Ranks:
    """Ranks of the positives of n queries, ragged.

    Attributes:
        ranks: int64 (positives,), grouped by query, ascending within a query.
        starts: int64 (n + 1,), where each query's ranks begin.
    """

    ranks: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, query: NDArray[np.int64], ranks: NDArray[np.int64], queries: int) -> Ranks:
        """Ranks from pairs (query index, rank), in any order.

        Raises:
            ValueError: a query has no positives, so that no ranking could be right.
        """
        order = np.lexsort((ranks, query))
        counts = np.bincount(query, minlength=queries)
        if queries and counts.min() == 0:
            raise ValueError(f"evaluation: {int((counts == 0).sum())} queries have no positive in the gallery")
        return cls(ranks[order], np.concatenate([[0], np.cumsum(counts)]))

    @property
    def first(self) -> NDArray[np.int64]:
        """The best rank of each query, int64 (n,)."""
        return self.ranks[self.starts[:-1]]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of positives of each query, int64 (n,)."""
        return np.diff(self.starts)


def recall_at(ranks: Ranks, k: int) -> Values:
    """1 if a positive is among the first k, else 0; (n,).

    >>> recall_at(Ranks.of(np.array([0, 0, 1]), np.array([2, 7, 6]), 2), 5).tolist()
    [1.0, 0.0]
    """
    return (ranks.first <= k).astype(np.float64)


def reciprocal_rank(ranks: Ranks) -> Values:
    """1 / best rank of each query; (n,)."""
    return 1.0 / ranks.first


def average_precision(ranks: Ranks) -> Values:
    """Mean over a query's positives of the precision at their ranks; (n,).

    >>> average_precision(Ranks.of(np.array([0, 0]), np.array([1, 4]), 1)).tolist()
    [0.75]
    """
    within = np.arange(len(ranks.ranks)) - np.repeat(ranks.starts[:-1], ranks.counts) + 1
    return _sums(within / ranks.ranks, ranks) / ranks.counts


def ndcg_at(ranks: Ranks, k: int = _DEPTH) -> Values:
    """Discounted gain of the first k over the best possible one, gains 0 or 1; (n,). Järvelin & Kekäläinen, 2002.

    >>> ndcg_at(Ranks.of(np.array([0]), np.array([3]), 1)).tolist()
    [0.5]
    """
    gains = np.where(ranks.ranks <= k, 1.0 / np.log2(ranks.ranks + 1.0), 0.0)
    ideal = np.cumsum(1.0 / np.log2(np.arange(1, k + 1) + 1.0))
    return _sums(gains, ranks) / ideal[np.minimum(ranks.counts, k) - 1]


def per_query(ranks: Ranks) -> dict[str, Values]:
    """Every metric that is a mean over queries, by name; (n,) each."""
    values = {f"R@{k}": recall_at(ranks, k) for k in RECALL_AT}
    values |= {"MRR": reciprocal_rank(ranks), "mAP": average_precision(ranks), f"nDCG@{_DEPTH}": ndcg_at(ranks)}
    return values | {"mean_rank": ranks.first.astype(np.float64)}


def summary(ranks: Ranks) -> dict[str, float]:
    """All metrics, averaged over all queries; the median of the best ranks is one of them."""
    found = {name: float(values.mean()) for name, values in per_query(ranks).items()}
    return found | {"median_rank": float(np.median(ranks.first))}


def chance_recall(gallery: int, counts: NDArray[np.int64], k: int = _DEPTH) -> float:
    """Recall@k of a random order: the mean over queries of 1 − C(gallery − positives, k) / C(gallery, k).

    >>> chance_recall(100, np.array([1]))
    0.1
    """
    k = min(k, gallery)
    misses = np.ones(len(counts))
    for i in range(k):
        misses *= np.clip(gallery - counts - i, 0, None) / (gallery - i)
    return round(float(1.0 - misses.mean()), 12)


def _sums(values: Values, ranks: Ranks) -> Values:
    return np.add.reduceat(values, ranks.starts[:-1]) if len(values) else np.zeros(0)
