"""Which candidates are hard negatives, and why the others are not: arrays in, arrays out."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from pipelines.train.mining.catalog import Catalog
from pipelines.train.mining.margins import threshold
from pipelines.train.mining.mining_settings import Direction


class Verdict(IntEnum):
    """What became of a candidate; the first that holds, in this order, is the one that counts."""

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
    """Positives, and the first ranks among what is left.

    Args:
        catalog: of the table.
        anchors: int64 (a,), places of the anchors.
        places: int64 (a, depth), candidates, best first; −1 where there is none.
        skip: so many candidates that are no positives are left out.

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
    """Whether a candidate bears the anchor's caption, letter for letter after normalisation.

    A picture bears all captions of its item. So a candidate picture is compared by each of its captions with the
    anchor's one, and a candidate caption with each of the anchor's item.

    Args:
        catalog: of the table.
        direction: what is mined.
        anchors: int (m,), places.
        candidates: int (m,), places.
    """
    if direction == "text_to_image":
        return catalog.is_said_of(catalog.item[candidates], catalog.caption[anchors])
    return catalog.is_said_of(catalog.item[anchors], catalog.caption[candidates])


def judge_by_score(
    verdicts: NDArray[np.int8], scores: NDArray[np.float32], positives: NDArray[np.float32], margin: float
) -> None:
    """Mark, in place, what is good so far but scores above the margin's threshold."""
    high = scores > threshold(positives, margin)[:, None]
    verdicts[(verdicts == Verdict.GOOD) & high] = Verdict.ABOVE_MARGIN


def choose(verdicts: NDArray[np.int8], negatives: int) -> NDArray[np.bool_]:
    """The first so many good candidates of each anchor, bool (a, depth)."""
    good = verdicts == Verdict.GOOD
    return good & (np.cumsum(good, axis=1) <= negatives)
