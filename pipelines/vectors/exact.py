"""Exact and list-based search of many anchors over a gallery, and checks of candidates against the anchor's own row.

Memory holds the anchors' vectors, their lists of candidates, and one block of the gallery.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.protocol import Modality
from pipelines.vectors.lists import NO_LIST, Lists, fewest_probes, nearest_lists, ranks_of_lists, recall_at
from pipelines.vectors.scan import Block
from pipelines.vectors.toplists import TopLists

_PAIRS = 8_192
SAMPLE = 128  # queries that choose the number of probes; as many others measure the recall


@dataclass(frozen=True, kw_only=True)
class Check:
    """Pairs of an anchor and a row whose vectors of one modality are to be compared.

    Attributes:
        modality: `image` or `text`.
        own: float32 (anchors, dim), the anchors' vectors of that modality.
        anchor: int32 (m,), index into `own`.
        place: int32 (m,), place of the row in the scan.
        threshold: least cosine at which the two count as the same.
    """

    modality: Modality
    own: NDArray[np.float32]
    anchor: NDArray[np.int32]
    place: NDArray[np.int32]
    threshold: float


def search_all(
    blocks: Iterable[Block], modality: Modality, gallery: NDArray[np.bool_], queries: NDArray[np.float32], depth: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The exact best rows of the gallery for each query.

    Args:
        blocks: blocks of the table, in the order of the scan.
        modality: the modality whose vectors are searched.
        gallery: bool (rows,), true for candidate rows.
        queries: float32 (a, dim), L2-normalised.
        depth: number of rows to find per query.

    Returns:
        Scores float32 (a, depth), best first, and places int64 (a, depth); −inf and −1 if there are fewer rows.
    """
    best = TopLists(len(queries), depth)
    anchors, vectors = torch.arange(len(queries)), torch.from_numpy(queries)
    for block in blocks:
        inside = np.flatnonzero(gallery[block.start : block.start + len(block)])
        if len(inside):
            rows = torch.from_numpy(_subset(block.vectors[modality], inside))
            best.offer(anchors, vectors, rows, torch.from_numpy(inside + block.start))
    return best.result()


def build_lists(
    blocks: Iterable[Block],
    modality: Modality,
    gallery: NDArray[np.bool_],
    centroids: NDArray[np.float32],
    queries: NDArray[np.float32],
    depth: int,
    *,
    goal: float,
    probes: int | None = None,
) -> tuple[Lists, float]:
    """Assign a gallery to lists in one pass, which also searches exactly for some queries, to measure recall.

    Args:
        blocks: blocks of the table, in the order of the scan.
        modality: the modality whose vectors are searched.
        gallery: bool (rows,), true for candidate rows.
        centroids: float32 (lists, dim), L2-normalised.
        queries: float32 (q, dim); every other query helps choose the number of probes, the others measure the recall.
        depth: number of candidates per query that count.
        goal: the recall that the number of probes must reach.
        probes: use this number of probes instead.

    Returns:
        The lists, and the recall at their number of probes.
    """
    member = np.full(len(gallery), NO_LIST, np.int32)
    best = TopLists(len(queries), depth)
    everyone, vectors = torch.arange(len(queries)), torch.from_numpy(queries)
    for block in blocks:
        inside = np.flatnonzero(gallery[block.start : block.start + len(block)])
        rows = block.vectors[modality][inside]
        member[inside + block.start] = nearest_lists(rows, centroids, 1)[:, 0]
        best.offer(everyone, vectors, torch.from_numpy(rows), torch.from_numpy(inside + block.start))
    exact = best.result()[1]
    ranks = ranks_of_lists(queries, centroids, np.where(exact >= 0, member[exact], 0))
    choosing, measuring = slice(0, None, 2), slice(1 if len(queries) > 1 else 0, None, 2)
    probes = min(probes or fewest_probes(ranks[choosing], exact[choosing], goal), len(centroids))
    return Lists(centroids, member, probes), recall_at(ranks[measuring], exact[measuring], probes)


def search_lists(
    blocks: Iterable[Block], modality: Modality, lists: Lists, queries: NDArray[np.float32], depth: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best rows within the lists that each query probes; shapes as in `search_all`."""
    best = TopLists(len(queries), depth)
    vectors = torch.from_numpy(queries)
    probes = nearest_lists(queries, lists.centroids, lists.probes)
    by_list = np.argsort(probes, axis=None, kind="stable")
    bounds = np.searchsorted(probes.ravel()[by_list], np.arange(len(lists.centroids) + 1))
    asking = torch.from_numpy(by_list // lists.probes)
    for block in blocks:
        for number, rows in _lists_of(lists.member[block.start : block.start + len(block)]):
            anchors = asking[bounds[number] : bounds[number + 1]]
            if len(anchors):
                gallery = torch.from_numpy(block.vectors[modality][rows])
                best.offer(anchors, vectors[anchors], gallery, torch.from_numpy(rows + block.start))
    return best.result()


def resembling(blocks: Iterable[Block], checks: list[Check]) -> list[NDArray[np.bool_]]:
    """For each check, bool (m,): which pairs reach its threshold; a pair with a missing vector does not."""
    orders = [np.argsort(check.place, kind="stable") for check in checks]
    sorted_places = [check.place[order] for check, order in zip(checks, orders, strict=True)]
    found = [np.zeros(len(check.place), bool) for check in checks]
    if not any(len(places) for places in sorted_places):
        return found
    for block in blocks:
        for check, order, places, same in zip(checks, orders, sorted_places, found, strict=True):
            low, high = np.searchsorted(places, [block.start, block.start + len(block)])
            for start in range(low, high, _PAIRS):
                chosen = order[start : min(start + _PAIRS, high)]
                same[chosen] = _resembles(block, check, chosen)
    return found


def _resembles(block: Block, check: Check, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
    rows = check.place[chosen] - block.start
    cosines = np.einsum("md,md->m", check.own[check.anchor[chosen]], block.vectors[check.modality][rows])
    return block.has[check.modality][rows] & (cosines >= check.threshold)


def _lists_of(members: NDArray[np.int32]) -> Iterable[tuple[int, NDArray[np.int64]]]:
    """(list, its rows in the block, ascending) for each list that has rows in the block."""
    order = np.argsort(members, kind="stable")
    order = order[np.searchsorted(members[order], 0) :]
    numbers, starts = np.unique(members[order], return_index=True)
    return zip(numbers.tolist(), np.split(order, starts[1:]), strict=True) if len(order) else ()


def _subset(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Some rows of `vectors`; no copy if these are all rows."""
    return vectors if len(rows) == len(vectors) else vectors[rows]
