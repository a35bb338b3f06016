"""Exact ranks of the positives of each query, with the gallery streamed in blocks.

Memory is bounded by the queries, their positives and one block, never by the gallery.

Ties: the bits of a float dot product depend on the order of summation, which BLAS changes with the shape of the blocks,
so equal vectors could get unequal scores. To prevent that, components are rounded to a grid of 2⁻²⁶. The products of
such vectors of length 1, and all their partial sums in any order, are then whole numbers below 2⁵³, which float64 holds
exactly. The grid moves a cosine by about 1e-8, less than a float32 product would; float16 vectors lie on it already.
Equal scores are ranked in the gallery's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Wide = NDArray[np.float64]
Index = NDArray[np.int64]
# The gallery: yields each block's start and its vectors (rows, dim), in order; it can be called repeatedly.
Blocks = Callable[[], Iterator[tuple[int, Matrix]]]
_GRID = 2.0**26
_LONGEST = 1.01
_QUERIES_AT_ONCE = 256
_PAIRS_AT_ONCE = 16_384
_COMPARED_ONE_BY_ONE = 8


def on_grid(vectors: Matrix | Wide) -> Wide:
    """Vectors (n, dim) as multiples of 2⁻²⁶, so that their products are exact; see the module's docstring.

    Raises:
        ValueError: a vector has a NaN, or is longer than 1.
    """
    wide = vectors.astype(np.float64)
    longest = float(np.sqrt(np.einsum("ij,ij->i", wide, wide).max(initial=0.0)))
    if not longest <= _LONGEST:
        raise ValueError(f"evaluation: a vector has length {longest:.4g}, not 1; embed the corpus again")
    return np.rint(wide * _GRID)


def positive_ranks(
    queries: Matrix, blocks: Blocks, positive_query: Index, positive_entry: Index, own_entry: Index | None = None
) -> Index:
    """The rank, from 1, of each positive among all entries of the gallery, in two passes over the gallery.

    Args:
        queries: (n, dim); their lengths do not matter.
        blocks: the gallery.
        positive_query: (positives,), the query of each positive.
        positive_entry: (positives,), its entry in the gallery.
        own_entry: (n,), the entry that a query must skip (itself), −1 for none.

    Returns:
        Ranks (positives,): 1 + entries with a higher score + earlier entries with an equal score.
    """
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    wide = on_grid(queries / np.maximum(lengths, 1.0))
    scores = _positive_scores(wide, blocks, positive_query, positive_entry)
    order = np.lexsort((-positive_entry, scores, positive_query))  # within a query, the worst first
    bounds = np.searchsorted(positive_query[order], np.arange(len(wide) + 1))
    wanted, entries = scores[order], positive_entry[order]
    above = np.zeros(len(order), np.int64)
    for start, block in blocks():
        gallery = on_grid(block)
        for low in range(0, len(wide), _QUERIES_AT_ONCE):
            lines = wide[low : low + _QUERIES_AT_ONCE] @ gallery.T
            _leave_out(lines, own_entry, low, start)
            for i, line in enumerate(lines):
                mine = slice(bounds[low + i], bounds[low + i + 1])
                above[mine] += entries_before(line, wanted[mine], entries[mine] - start)
    ranks = np.empty(len(order), np.int64)
    ranks[order] = above + 1
    return ranks


def top_entries(queries: Matrix, blocks: Blocks, depth: int) -> Index:
    """The best entries of each query, best first, in the order of `positive_ranks`; one pass over the gallery.

    Args:
        queries: (n, dim); their lengths do not matter.
        blocks: the gallery.
        depth: number of entries per query, at most the size of the gallery.

    Returns:
        Entries (n, depth).
    """
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    wide = on_grid(queries / np.maximum(lengths, 1.0))
    scores, entries = np.zeros((len(wide), 0)), np.zeros((len(wide), 0), np.int64)
    for start, block in blocks():
        gallery = on_grid(block)
        places = np.broadcast_to(np.arange(start, start + len(block)), (len(wide), len(block)))
        # Earlier entries precede those of the block, and a stable sort keeps that order among equal scores.
        both = np.concatenate([scores, wide @ gallery.T], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :depth]
        scores = np.take_along_axis(both, order, axis=1)
        entries = np.take_along_axis(np.concatenate([entries, places], axis=1), order, axis=1)
    return entries


def entries_before(line: Wide, wanted: Wide, places: Index) -> Index:
    """The number of entries of a block that come before each positive of one query.

    Args:
        line: (block,), scores of the block's entries.
        wanted: (positives,), scores of the positives, ascending.
        places: (positives,), places of the positives relative to the block's start: below 0 if before the block, beyond
            its end if after it; descending among equal scores.

    >>> entries_before(np.array([5.0, 7.0, 5.0]), np.array([5.0, 5.0]), np.array([2, 0])).tolist()
    [2, 1]
    """
    if len(wanted) <= _COMPARED_ONE_BY_ONE:
        earlier = np.clip(places, 0, len(line))
        few = [
            np.count_nonzero(line > s) + (np.count_nonzero(line[:p] == s) if p else 0)
            for s, p in zip(wanted, earlier, strict=True)
        ]
        return np.array(few, np.int64)
    beaten = np.searchsorted(wanted, line, side="left")
    tied = np.flatnonzero(wanted[np.minimum(beaten, len(wanted) - 1)] == line)
    # An entry also precedes the positives that have its score and a later place.
    for entry in tied.tolist():
        same = slice(beaten[entry], np.searchsorted(wanted, line[entry], side="right"))
        beaten[entry] += np.count_nonzero(places[same] > entry)
    counts = np.bincount(beaten, minlength=len(wanted) + 1)
    return (len(line) - np.cumsum(counts)[: len(wanted)]).astype(np.int64)


def _positive_scores(wide: Wide, blocks: Blocks, query: Index, entry: Index) -> Wide:
    """The score of each positive; all scores are exact, so it does not matter how they are computed."""
    scores = np.empty(len(query))
    order = np.argsort(entry, kind="stable")
    for start, block in blocks():
        low, high = np.searchsorted(entry[order], (start, start + len(block)))
        gallery = on_grid(block)
        for at in range(low, high, _PAIRS_AT_ONCE):
            pairs = order[at : min(at + _PAIRS_AT_ONCE, high)]
            scores[pairs] = np.einsum("ij,ij->i", wide[query[pairs]], gallery[entry[pairs] - start])
    return scores


def _leave_out(lines: Wide, own: Index | None, low: int, start: int) -> None:
    """Give each query's own entry the last rank."""
    if own is None:
        return
    mine = own[low : low + len(lines)]
    places = mine - start
    inside = np.flatnonzero((mine >= 0) & (places >= 0) & (places < lines.shape[1]))
    lines[inside, places[inside]] = -np.inf


def joined(left: Index, right: Index) -> tuple[Index, Index]:
    """All pairs (i, j) with left[i] == right[j].

    >>> [pairs.tolist() for pairs in joined(np.array([5, 7]), np.array([7, 5, 7]))]
    [[0, 1, 1], [1, 0, 2]]
    """
    order = np.argsort(right, kind="stable")
    low, high = (np.searchsorted(right[order], left, side=side) for side in ("left", "right"))
    counts = high - low
    i = np.repeat(np.arange(len(left)), counts)
    j = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low, counts)
    return i, order[j]
