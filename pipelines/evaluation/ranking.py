"""Exact ranks of the positives of each query, the gallery streamed in blocks.

Memory is bounded by the queries, their positives and one block, never by the gallery. Scores are cosines in float64
rounded to 1e-9: so
equal vectors get equal scores whatever block they stand in (BLAS may differ in the last bits by shape), and a tie
goes to the earlier entry of the gallery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Index = NDArray[np.int64]
# A block of the gallery: where it starts, and its vectors (rows, dim).
Blocks = Callable[[], Iterator[tuple[int, Matrix]]]
_RESOLUTION = 1e9
_QUERIES_AT_ONCE = 256
_NEVER = np.iinfo(np.int64).min


def positive_ranks(
    queries: Matrix, blocks: Blocks, positive_query: Index, positive_entry: Index, own_entry: Index | None = None
) -> Index:
    """The rank, from 1, of each positive among all entries of the gallery.

    Args:
        queries: (n, dim), L2-normalised.
        blocks: the gallery, in order, every time that it is called.
        positive_query: (positives,), the query of each positive.
        positive_entry: (positives,), its entry of the gallery.
        own_entry: (n,), an entry that a query leaves out (itself), −1 for none.

    Returns:
        (positives,) ranks.
    """
    order = np.argsort(positive_query, kind="stable")
    bounds = np.searchsorted(positive_query[order], np.arange(len(queries) + 1))
    wanted = _positive_scores(queries, blocks, positive_query, positive_entry)
    above = np.zeros(len(positive_query), np.int64)
    wide = queries.astype(np.float64)
    for start, vectors in blocks():
        entries = vectors.astype(np.float64)
        for low in range(0, len(queries), _QUERIES_AT_ONCE):
            high = min(low + _QUERIES_AT_ONCE, len(queries))
            scores = _rounded(wide[low:high] @ entries.T)
            _leave_out(scores, own_entry, low, high, start)
            mine = order[bounds[low] : bounds[high]]
            above[mine] += _before(scores, positive_query[mine] - low, wanted[mine], positive_entry[mine] - start)
    return above + 1


def _before(scores: Index, row: Index, wanted: Index, place: Index) -> Index:
    """How many entries of a block come before each positive: a higher score, or an equal one earlier."""
    counts = np.empty(len(row), np.int64)
    columns = np.arange(scores.shape[1])
    for i, (r, s, p) in enumerate(zip(row, wanted, place, strict=True)):
        line = scores[r]
        counts[i] = np.count_nonzero(line > s) + np.count_nonzero((line == s) & (columns < p))
    return counts


def _positive_scores(queries: Matrix, blocks: Blocks, query: Index, entry: Index) -> Index:
    scores = np.empty(len(query), np.int64)
    for start, vectors in blocks():
        inside = np.flatnonzero((entry >= start) & (entry < start + len(vectors)))
        theirs = vectors[entry[inside] - start].astype(np.float64)
        scores[inside] = _rounded(np.einsum("ij,ij->i", queries[query[inside]].astype(np.float64), theirs))
    return scores


def _rounded(scores: NDArray[np.float64]) -> Index:
    return np.rint(scores * _RESOLUTION).astype(np.int64)


def _leave_out(scores: Index, own: Index | None, low: int, high: int, start: int) -> None:
    if own is None:
        return
    places = own[low:high] - start
    inside = np.flatnonzero((own[low:high] >= 0) & (places >= 0) & (places < scores.shape[1]))
    scores[inside, places[inside]] = _NEVER


def joined(left: Index, right: Index) -> tuple[Index, Index]:
    """All (i, j) with left[i] == right[j].

    >>> [pairs.tolist() for pairs in joined(np.array([5, 7]), np.array([7, 5, 7]))]
    [[0, 1, 1], [1, 0, 2]]
    """
    order = np.argsort(right, kind="stable")
    low, high = (np.searchsorted(right[order], left, side=side) for side in ("left", "right"))
    counts = high - low
    i = np.repeat(np.arange(len(left)), counts)
    j = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low, counts)
    return i, order[j]
