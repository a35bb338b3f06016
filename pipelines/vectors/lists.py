"""Approximate search for many anchors at once: k-means lists over the gallery, and products of whole lists.

An index answers one query at a time, a few hundred per second. Here all anchors that probe a list are compared with it
in one product, and the gallery is streamed from the table without a copy. Within the probed lists the search is exact,
so recall depends only on the number of probes. One sample of queries chooses that number before anything is mined, and
a second sample measures the recall that is reported.

Inverted lists: Jégou, Douze, Schmid, "Product quantization for nearest neighbor search" (2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_ROUNDS = 8
_SAMPLES_PER_LIST = 40
_FEWEST_ROWS = 8
_SAMPLE_BYTES = 128 << 20
_CELLS = 1 << 23  # similarities to centroids per product: 32 MiB
NO_LIST = -1


@dataclass(frozen=True)
class Lists:
    """A gallery partitioned into lists.

    Attributes:
        centroids: float32 (lists, dim), L2-normalised.
        member: int32 (rows,), each row's list; −1 for rows outside the gallery.
        probes: number of lists that an anchor searches.
    """

    centroids: NDArray[np.float32]
    member: NDArray[np.int32]
    probes: int


def plan_lists(gallery: int) -> int:
    """Number of lists for a gallery: four times the square root of its rows, but at least 8 rows per list."""
    return max(1, min(round(4 * math.sqrt(gallery)), gallery // _FEWEST_ROWS))


def plan_sample(lists: int, gallery: int, dim: int) -> int:
    """Number of vectors to train k-means on: within a fixed memory, but never fewer than lists."""
    return min(gallery, max(lists, min(lists * _SAMPLES_PER_LIST, _SAMPLE_BYTES // (4 * dim))))


def train_centroids(sample: NDArray[np.float32], lists: int, seed: int) -> NDArray[np.float32]:
    """Spherical k-means, float32 (lists, dim); a centroid without vectors moves to a randomly drawn vector.

    Args:
        sample: float32 (n, dim), n >= lists.
        lists: number of centroids.
        seed: seed of the starting points and of redrawn centroids.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.from_numpy(sample)
    centroids = vectors[torch.randperm(len(vectors), generator=generator)[:lists]].clone()
    for _ in range(_ROUNDS):
        nearest = torch.from_numpy(nearest_lists(sample, centroids.numpy(), 1)[:, 0].astype(np.int64))
        sums = torch.zeros_like(centroids).index_add_(0, nearest, vectors)
        empty = torch.bincount(nearest, minlength=lists) == 0
        redrawn = torch.randint(len(vectors), (int(empty.sum()),), generator=generator)
        sums[empty] = vectors[redrawn]
        centroids = torch.nn.functional.normalize(sums, dim=1)
    return centroids.numpy()


def nearest_lists(vectors: NDArray[np.float32], centroids: NDArray[np.float32], probes: int) -> NDArray[np.int32]:
    """The nearest centroids of each vector, int32 (n, probes), nearest first."""
    targets = torch.from_numpy(centroids).T
    found = np.empty((len(vectors), probes), np.int32)
    rows = max(1, _CELLS // len(centroids))
    for start in range(0, len(vectors), rows):
        scores = torch.from_numpy(vectors[start : start + rows]) @ targets
        best = scores.argmax(1, keepdim=True) if probes == 1 else torch.topk(scores, probes, dim=1).indices
        found[start : start + rows] = best.numpy()
    return found


def ranks_of_lists(
    queries: NDArray[np.float32], centroids: NDArray[np.float32], wanted: NDArray[np.int32]
) -> NDArray[np.int64]:
    """The probe at which each query reaches the wanted lists (n, k): int64 (n, k), 0 for the first probe."""
    order = nearest_lists(queries, centroids, len(centroids))
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1], dtype=np.int32)[None, :], axis=1)
    return np.take_along_axis(rank, wanted.astype(np.int64), axis=1).astype(np.int64)


def recall_at(ranks: NDArray[np.int64], places: NDArray[np.int64], probes: int) -> float:
    """The share of the exact candidates that lie in the probed lists; empty places (−1) do not count.

    >>> recall_at(np.array([[0, 5], [1, 9]]), np.array([[3, 4], [7, -1]]), 2)
    0.6666666666666666
    """
    there = places >= 0
    return float((ranks[there] < probes).mean()) if there.any() else 1.0


def fewest_probes(ranks: NDArray[np.int64], places: NDArray[np.int64], recall: float) -> int:
    """The fewest probes that reach a recall on a sample.

    >>> fewest_probes(np.array([[0, 1, 2, 9]]), np.array([[4, 5, 6, 7]]), 0.7)
    3
    """
    there = np.sort(ranks[places >= 0])
    return int(there[math.ceil(recall * len(there)) - 1]) + 1 if len(there) else 1
