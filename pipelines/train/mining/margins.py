"""Which scores are too high to be a negative's.

A candidate is kept if `s_neg <= s_pos − |s_pos|·margin`. (`s_pos·(1 − margin)`, the usual form, asks for *more* than
`s_pos` where that is negative.) The idea of a threshold relative to the positive: Moreira et al.,
"NV-Retriever" (2024).

`margin = "auto"` calibrates on the scores of the table's own pairs: a candidate that scores as high as three pairs out
of four (their first quartile and up) cannot be told from a positive by this encoder, whatever its anchor. The margin is
chosen so that the threshold of the median pair lies at that quartile: `margin = (median − q25) / |median|`, within 0
and 1. Narrow distributions give a small margin, encoders that are not sure of their pairs a large one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AUTO_QUANTILE = 0.25


def calibrate(positives: NDArray[np.floating]) -> float:
    """The margin that `auto` stands for.

    Args:
        positives: scores of the table's pairs, at least one.

    >>> round(calibrate(np.array([0.2, 0.3, 0.4])), 4)
    0.1667
    """
    low, median = np.quantile(positives.astype(np.float64), [AUTO_QUANTILE, 0.5])
    return float(np.clip((median - low) / abs(median), 0.0, 1.0)) if median else 0.0


def threshold(positives: NDArray[np.floating], margin: float) -> NDArray[np.float64]:
    """The highest score that a negative may have, float64, for each positive's score."""
    scores = positives.astype(np.float64)
    return scores - np.abs(scores) * margin
