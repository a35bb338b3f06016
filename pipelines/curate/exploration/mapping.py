"""Vectors as points of a plane, their clusters, and the clusters' names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.vectors.digests import normalised_caption

NOISE = -1
_FEWEST = 16  # with fewer rows, a map has no neighbourhoods to preserve


@dataclass(frozen=True)
class Cluster:
    """A cluster of rows.

    Attributes:
        number: number of the cluster; the largest is 0.
        size: number of its rows.
        captions: captions of its most typical rows, the most typical first.
        members: indices of its rows, the most typical first.
    """

    number: int
    size: int
    captions: tuple[str, ...]
    members: tuple[int, ...]

    @property
    def name(self) -> str:
        """The captions in one line; `cluster N` if there are none."""
        return " · ".join(self.captions) or f"cluster {self.number}"


def project(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Points of a plane, float32 (n, 2), that are near each other if the vectors are.

    Uses UMAP (McInnes, Healy, Melville, 2018) with cosine distance; for fewer than 16 vectors, the first two principal
    components.

    Args:
        vectors: float32 (n, dim).
        seed: equal seeds give equal maps.

    Raises:
        ModuleNotFoundError: the extra `explore` is not installed.
    """
    if len(vectors) < _FEWEST:
        centred = vectors - vectors.mean(axis=0) if len(vectors) else vectors
        points = np.zeros((len(vectors), 2), np.float32)
        if len(vectors) > 1:
            left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
            kept = min(2, len(sizes))
            points[:, :kept] = left[:, :kept] * sizes[:kept]
        return points
    try:
        import umap
    except ModuleNotFoundError:
        raise ModuleNotFoundError("isthmus explore needs more packages: pip install 'isthmus[explore]'") from None
    model = umap.UMAP(n_neighbors=min(15, len(vectors) - 1), min_dist=0.1, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(vectors), np.float32)


def find_clusters(points: NDArray[np.float32]) -> NDArray[np.int64]:
    """The cluster of each point, int64 (n,), numbered from the largest, 0; −1 for points between clusters.

    Uses HDBSCAN (Campello, Moulavi, Sander, 2013), which finds as many clusters as there are dense regions.

    Args:
        points: float32 (n, 2).
    """
    if len(points) < _FEWEST:
        return np.full(len(points), NOISE, np.int64)
    from sklearn.cluster import HDBSCAN

    # Take the leaves of the tree: by default, one cluster of nearly all rows wins over the many within it.
    smallest = max(5, math.isqrt(len(points)))
    found = HDBSCAN(min_cluster_size=smallest, cluster_selection_method="leaf", copy=True).fit_predict(points)
    numbers, sizes = np.unique(found[found >= 0], return_counts=True)
    renamed = np.full(int(found.max(initial=0)) + 1, NOISE, np.int64)
    renamed[numbers[np.argsort(-sizes, kind="stable")]] = np.arange(len(numbers))
    return np.where(found >= 0, renamed[np.maximum(found, 0)], NOISE)


def describe_clusters(
    vectors: NDArray[np.float32], cluster: NDArray[np.int64], captions: Sequence[str | None], names: int = 3
) -> list[Cluster]:
    """The clusters, each named by the captions of the rows nearest to its centre.

    Args:
        vectors: float32 (n, dim), L2-normalised.
        cluster: int64 (n,), number of each row's cluster, −1 for none.
        captions: the captions of the n rows.
        names: number of distinct captions per cluster.
    """
    found = []
    for number in range(int(cluster.max(initial=NOISE)) + 1):
        members = np.flatnonzero(cluster == number)
        closeness = vectors[members] @ vectors[members].mean(axis=0)
        ordered = members[np.argsort(-closeness, kind="stable")].tolist()
        typical: dict[str, str] = {}
        for member in ordered:
            if (caption := captions[member]) and len(typical) < names:
                typical.setdefault(normalised_caption(caption), caption)
        found.append(
            Cluster(number=number, size=len(members), captions=tuple(typical.values()), members=tuple(ordered))
        )
    return found
