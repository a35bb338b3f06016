"""Decides which candidates are hard negatives, and why the others are not: arrays in, arrays out."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from pipelines.train.mining.catalog import Catalog
from pipelines.train.mining.margins import threshold
from pipelines.train.mining.mining_settings import Direction


class Verdict(IntEnum):
    """The verdict on a candidate; if several apply, the first in this order counts."""

    NOTHING = -1
    GOOD = 0
    SAME_ITEM = 1
    SKIPPED_RANKS = 2
    NEAR_DUPLICATE_IMAGE = 3
    NEAR_DUPLICATE_CAPTION = 4
    ABOVE_MARGIN = 5


DROPPED = tuple(v for v in Verdict if v > Verdict.GOOD)


def judge_by_rank(
    catalog: Catalog, anchors: NDArray[np.int64], places: NDArray[np.int64], skip: int
) -> NDArray[np.int8]:
    """Mark the positives, and the first ranks among the other candidates.

    Args:
        catalog: the catalog of the table.
        anchors: int64 (a,), places of the anchors.
        places: int64 (a, depth), places of the candidates, best first; −1 for none.
        skip: skip this many of the top-ranked candidates that are not positives.

    Returns:
        Verdicts, int8 (a, depth).
    """
    there = places >= 0
    same = there & (catalog.item[places] == catalog.item[anchors][:, None])
    others = there & ~same
    skipped = others & (np.cumsum(others, axis=1) <= skip)
    verdicts = np.full(places.shape, Verdict.GOOD, np.int8)
    verdicts[~there] = Verdict.NOTHING
    verdicts[same] = Verdict.SAME_ITEM
    verdicts[skipped] = Verdict.SKIPPED_RANKS
    return verdicts


def says_the_same(
    catalog: Catalog, direction: Direction, anchors: NDArray[np.integer], candidates: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Whether a candidate has the anchor's caption, letter for letter after normalisation: bool (m,).

    A picture has all captions of its item. So each caption of a candidate picture is compared with the anchor's
    caption, and a candidate caption with each caption of the anchor's item.

    Args:
        catalog: the catalog of the table.
        direction: the direction that is mined.
        anchors: int (m,), places of the anchors.
        candidates: int (m,), places of the candidates.
    """
    if direction == "text_to_image":
        return catalog.is_said_of(catalog.item[candidates], catalog.caption[anchors])
    return catalog.is_said_of(catalog.item[anchors], catalog.caption[candidates])


def judge_by_score(
    verdicts: NDArray[np.int8], scores: NDArray[np.float32], positives: NDArray[np.float32], margin: float
) -> None:
    """Mark, in place, the candidates that are good so far but score above the threshold of the margin."""
    high = scores > threshold(positives, margin)[:, None]
    verdicts[(verdicts == Verdict.GOOD) & high] = Verdict.ABOVE_MARGIN


def choose(verdicts: NDArray[np.int8], negatives: int) -> NDArray[np.bool_]:
    """The first `negatives` good candidates of each anchor, bool (a, depth)."""
    good = verdicts == Verdict.GOOD
    return good & (np.cumsum(good, axis=1) <= negatives)
