"""Uncertainty of a mean over queries: percentile bootstrap over clusters, and the paired test of two systems.

Captions of one picture succeed and fail together, so the bootstrap draws pictures with all their captions. Efron &
Tibshirani, 1993.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
_DRAWS = 2_000
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference of means with its 95 % interval.

    Attributes:
        mean: mean of the second system minus that of the first.
        low: lower bound of the interval.
        high: upper bound of the interval.
        p_value: two-sided p-value of the sign-flip test: the probability of a difference this large by chance alone.
    """

    mean: float
    low: float
    high: float
    p_value: float

    def to_dict(self) -> dict[str, float]:
        """The fields as JSON-ready data."""
        return asdict(self)


def interval(values: Values, clusters: NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of `values` (n,); rows with equal `clusters` (n,) are drawn together."""
    means = _resampled_means(*_by_cluster(values, clusters), seed)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def paired_difference(first: Values, second: Values, clusters: NDArray[np.int64], seed: int = 0) -> Difference:
    """Mean of the second system minus that of the first, on the same queries.

    Args:
        first: (n,), the first system's values, one per query.
        second: (n,), the second system's values of the same queries.
        clusters: (n,), codes; queries with equal codes are drawn together.
        seed: seed of the draws.
    """
    change = second - first
    sums, counts = _by_cluster(change, clusters)
    low, high = np.quantile(_resampled_means(sums, counts, seed), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    observed = float(change.mean())
    rng = np.random.default_rng(seed + 1)
    extreme = 0
    for _ in range(_DRAWS):
        flipped = float((sums * rng.choice((-1.0, 1.0), len(sums))).sum() / counts.sum())
        extreme += abs(flipped) >= abs(observed) - 1e-12
    p_value = (extreme + 1) / (_DRAWS + 1)
    return Difference(mean=observed, low=float(low), high=float(high), p_value=p_value)


def _by_cluster(values: Values, clusters: NDArray[np.int64]) -> tuple[Values, Values]:
    """Sum and count of the values of each cluster."""
    _, codes = np.unique(clusters, return_inverse=True)
    counts: Values = np.bincount(codes).astype(np.float64)
    return np.bincount(codes, weights=values).astype(np.float64), counts


def _resampled_means(sums: Values, counts: Values, seed: int) -> Values:
    rng = np.random.default_rng(seed)
    n = len(sums)
    means = np.empty(_DRAWS)
    for i in range(_DRAWS):
        drawn = rng.integers(0, n, n)
        means[i] = sums[drawn].sum() / counts[drawn].sum()
    return means
