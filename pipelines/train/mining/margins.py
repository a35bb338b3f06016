"""The highest score that a negative may have.

A candidate is kept if `s_neg <= s_pos − |s_pos|·margin`. (The usual form, `s_pos·(1 − margin)`, would allow *more* than
`s_pos` if that is negative.) The threshold relative to the positive is from Moreira et al., "NV-Retriever" (2024).

`margin = "auto"` calibrates on the scores of the table's own pairs. A candidate that scores as high as three pairs out
of four (at or above their first quartile) cannot be told from a positive by this encoder, whatever its anchor. The
margin is chosen so that the threshold of the median pair lies at that quartile: `margin = (median − q25) / |median|`,
clipped to 0 and 1. Narrow distributions give a small margin, and encoders that are unsure of their pairs a large one.
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
    """The highest score that a negative may have for each positive's score, float64."""
    scores = positives.astype(np.float64)
    return scores - np.abs(scores) * margin
