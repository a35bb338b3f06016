"""Fuses several rankings into one and diversifies a ranking. Plain numpy on the hits; the table is not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# The constant of the paper. It keeps the first places of a single ranking from deciding alone.
_RANK_CONSTANT = 60


def check_weights(weights: Sequence[float] | None, rankings: Sequence[str]) -> None:
    """Reject weights unless there are several rankings and one weight for each.

    Args:
        weights: the weights as given; None is always valid.
        rankings: the columns that are ranked.

    Raises:
        ValueError: names the rankings.
    """
    if weights is not None and (len(rankings) < 2 or len(weights) != len(rankings)):
        raise ValueError(
            f"search: fusion_weights {list(weights)}: {len(rankings)} ranking(s) to weigh ({', '.join(rankings)}); "
            "give one weight for each of several"
        )


def fuse_ranks(rankings: Sequence[Sequence[str]], weights: Sequence[float] | None = None) -> dict[str, float]:
    """Reciprocal rank fusion: sum over rankings of weight / (60 + rank), ranks from 1.

    Args:
        rankings: lists of ids, best first; an id may be missing from some of them.
        weights: one weight per ranking, above 0; None weights all equally.

    Returns:
        A score for every id.

    Source: Cormack, Clarke, Büttcher: Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods
    (SIGIR 2009).

    >>> sorted(fuse_ranks([["a", "b"], ["b", "c"]]))
    ['a', 'b', 'c']
    """
    scores: dict[str, float] = {}
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        for rank, row_id in enumerate(ranking, start=1):
            scores[row_id] = scores.get(row_id, 0.0) + weight / (_RANK_CONSTANT + rank)
    return scores


def fuse_scores(rankings: Sequence[Mapping[str, float]], weights: Sequence[float] | None = None) -> dict[str, float]:
    """The weighted mean of scores, stretched to [0, 1] within each ranking. An id missing from a ranking gets 0 there.

    Args:
        rankings: id → score, higher is better.
        weights: one weight per ranking, above 0; None weights all equally.

    Returns:
        A score in [0, 1] for every id.

    Source: Fox, Shaw: Combination of Multiple Searches (TREC-2, 1994), CombSUM over min-max normalised scores.

    >>> fuse_scores([{"a": 3.0, "b": 1.0}, {"b": 0.5}])
    {'a': 0.5, 'b': 0.5}
    """
    scores: dict[str, float] = {}
    given = np.asarray(weights or [1.0] * len(rankings), np.float64)
    for ranking, share in zip(rankings, given / given.sum(), strict=True):
        stretched = stretch(np.fromiter(ranking.values(), np.float64, len(ranking)))
        for row_id, score in zip(ranking, stretched, strict=True):
            scores[row_id] = scores.get(row_id, 0.0) + float(score) * float(share)
    return scores


def stretch(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) values mapped linearly so that the lowest is 0 and the highest 1; all 1 if they are equal."""
    if len(values) == 0 or np.ptp(values) == 0:
        return np.ones_like(values)
    return np.asarray((values - values.min()) / np.ptp(values))


def diversify(
    relevance: NDArray[np.float64], vectors: NDArray[np.float32], diversity: float, count: int
) -> NDArray[np.int64]:
    """Maximal marginal relevance: greedily the row with the most (1 - d) · relevance - d · likeness to a chosen one.

    Relevance and likeness are each stretched to [0, 1] first. Cosines of words to pictures lie in a far narrower range
    than those between pictures, and would otherwise never count.

    Args:
        relevance: (n,) scores, higher is better.
        vectors: (n, dim) vectors of the same rows, of length 1, or 0 if a row has none (it is then unlike all others).
        diversity: d, from 0 to 1.
        count: number of rows to choose.

    Returns:
        Positions of the chosen rows, int64, in the order of their choice; ties go to the earlier row.

    Source: Carbonell, Goldstein: The Use of MMR (SIGIR 1998).
    """
    n = len(relevance)
    gain = (1.0 - diversity) * stretch(relevance)
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    others = cosines[~np.eye(n, dtype=bool)]
    low, span = (others.min(), np.ptp(others) or 1.0) if n > 1 else (0.0, 1.0)
    likeness = np.clip((cosines - low) / span, 0.0, 1.0)
    nearest = np.zeros(n)
    free = np.ones(n, bool)
    chosen: list[int] = []
    for _ in range(min(count, n)):
        best = int(np.argmax(np.where(free, gain - diversity * nearest, -np.inf)))
        chosen.append(best)
        free[best] = False
        nearest = np.maximum(nearest, likeness[best])
    return np.asarray(chosen, np.int64)
