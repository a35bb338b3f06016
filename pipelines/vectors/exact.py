"""Candidates of a block of anchors, and which of them resemble the anchor's own row: two passes over the gallery.

Memory: the anchors' vectors, their lists, and one block of the gallery.
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
SAMPLE = 128  # queries that choose the probes, and as many others that measure them


@dataclass(frozen=True, kw_only=True)
class Check:
    """Pairs of an anchor and a row whose vectors of one modality are to be compared.

    Attributes:
        modality: `image` or `text`.
        own: float32 (anchors, dim), the anchors' vectors of that modality.
        anchor: int32 (m,), index into `own`.
        place: int32 (m,), place of the row.
        threshold: cosine from which on the two count as the same.
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
        blocks: the table.
        modality: whose vectors are searched.
        gallery: bool (rows,), which rows are candidates.
        queries: float32 (a, dim).
        depth: how many.

    Returns:
        Scores float32 (a, depth), best first, and places int64 (a, depth); −inf and −1 where there are fewer.
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
    """Lists over a gallery in one pass, which also searches exactly for some queries: so recall is measured.

    Args:
        blocks: the table.
        modality: whose vectors are searched.
        gallery: bool (rows,), which rows are candidates.
        centroids: float32 (lists, dim).
        queries: float32 (q, dim); every other one chooses the probes, the others measure them.
        depth: how many candidates count.
        goal: recall that the fewest probes are chosen for.
        probes: as many instead.

    Returns:
        The lists, and the recall at their probes.
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
    """The best rows among the lists that each query probes; as `search_all` otherwise."""
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
    """For each check, which of its pairs reach its threshold (bool (m,)); a row without a vector resembles none."""
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
    """(list, rows of the block in it, ascending) for the lists that a block has rows of."""
    order = np.argsort(members, kind="stable")
    order = order[np.searchsorted(members[order], 0) :]
    numbers, starts = np.unique(members[order], return_index=True)
    return zip(numbers.tolist(), np.split(order, starts[1:]), strict=True) if len(order) else ()


def _subset(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Some rows; no copy where they are all."""
    return vectors if len(rows) == len(vectors) else vectors[rows]
