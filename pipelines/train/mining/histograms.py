"""Histograms of scores that can be summed over tasks: fine bins over all cosines, reduced to 20 over the used range."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 20
_FINE = 4_000


def count_scores(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Fine histogram of cosines from −1 to 1, int64; values that rounding put outside count in the end bins."""
    counts, _ = np.histogram(np.clip(scores, -1.0, 1.0), bins=_FINE, range=(-1.0, 1.0))
    return counts.astype(np.int64)


def no_scores() -> NDArray[np.int64]:
    """An empty fine histogram."""
    return np.zeros(_FINE, np.int64)


def coarse(positives: NDArray[np.int64], negatives: NDArray[np.int64]) -> dict[str, list[Any]]:
    """Two fine histograms as 20 bins with common edges, over the range in which either has scores.

    Returns:
        `edges` (21 floats), `positives` and `negatives` (20 counts each).

    >>> found = coarse(count_scores(np.array([0.5])), count_scores(np.array([0.1, 0.2])))
    >>> sum(found["positives"]), sum(found["negatives"]), len(found["edges"])
    (1, 2, 21)
    """
    used = np.flatnonzero(positives + negatives)
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, _FINE)
    width = -(-(high - low) // BINS)
    low = max(0, min(low, _FINE - width * BINS))
    edges = -1.0 + (low + np.arange(BINS + 1) * width) * 2.0 / _FINE
    return {
        "edges": [round(float(edge), 4) for edge in edges],
        "positives": _cut(positives, low, width),
        "negatives": _cut(negatives, low, width),
    }


def _cut(fine: NDArray[np.int64], low: int, width: int) -> list[int]:
    part = np.zeros(BINS * width, np.int64)
    there = fine[low : low + BINS * width]
    part[: len(there)] = there
    return [int(n) for n in part.reshape(BINS, width).sum(1)]
