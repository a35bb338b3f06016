"""The settings of a mining run. They validate themselves, and are plain data for workers and metadata."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Direction = Literal["text_to_image", "image_to_text"]
Method = Literal["auto", "exact", "ann"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """Settings of a mining run.

    Attributes:
        version: version of the table; None for the latest.
        tag: tag of the table, instead of `version`.
        negatives: the most negatives per anchor and direction.
        skip: skip this many of the top-ranked candidates that are not positives, whatever their score.
        candidates: number of top-ranked rows to consider, not counting the skipped ones.
        margin: a candidate is kept if s_neg <= s_pos - |s_pos| * margin; "auto" calibrates it (see
            `pipelines.train.mining.margins`).
        directions: the directions to mine.
        where: SQL filter on the table: only these rows are anchors and candidates.
        method: `exact` compares all pairs; `ann` searches the nearest lists of k-means centroids; `auto` decides by the
            number of pairs.
        anchors: number of anchors, sampled by `seed`; None takes every row.
        near_duplicate_image: least cosine at which two pictures count as the same.
        near_duplicate_text: least cosine at which two captions count as the same.
        target_recall: recall of the approximate candidates against the exact ones that the number of probes must reach
            on a sample; the fewest probes that reach it are taken.
        min_recall: the same recall, measured on other anchors; if it is lower than this, the run is refused.
        probes: number of lists searched per anchor; None takes what `target_recall` needs.
        rows_per_task: anchors per Ray task; a worker's memory grows with it.
        seed: seed of every sample.
    """

    version: int | None = None
    tag: str | None = None
    negatives: int = 8
    skip: int = 0
    candidates: int = 100
    margin: float | Literal["auto"] = 0.05
    directions: tuple[Direction, ...] = DIRECTIONS
    where: str | None = None
    method: Method = "auto"
    anchors: int | None = None
    near_duplicate_image: float = 0.95
    near_duplicate_text: float = 0.95
    target_recall: float = 0.99
    min_recall: float = 0.9
    probes: int | None = None
    rows_per_task: int = 32_768
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a setting is out of range; the message names it, its value and what is allowed.
        """
        least = {"negatives": 1, "candidates": 1, "rows_per_task": 1, "skip": 0, "anchors": 1, "probes": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"mine: {name} {value}: give at least {low}")
        if self.version is not None and self.tag is not None:
            raise ValueError(f"mine: version {self.version} and tag {self.tag!r}: give one of the two")
        if self.margin != "auto" and not 0 <= float(self.margin) <= 1:
            raise ValueError(f"mine: margin {self.margin}: give a number from 0 to 1, or auto")
        if unknown := set(self.directions) - set(DIRECTIONS):
            raise ValueError(f"mine: direction {unknown.pop()!r}: give {' or '.join(DIRECTIONS)}")
        if not self.directions:
            raise ValueError(f"mine: no direction; give {' or '.join(DIRECTIONS)}")
        for name in ("target_recall", "min_recall"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"mine: {name} {getattr(self, name)}: give a number above 0, up to 1")
        for name in ("near_duplicate_image", "near_duplicate_text"):
            if not -1 <= getattr(self, name) <= 2:
                raise ValueError(f"mine: {name} {getattr(self, name)}: give a cosine (above 1 switches the check off)")

    @property
    def depth(self) -> int:
        """Length of a candidate list: skipped and considered ranks."""
        return self.skip + self.candidates

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready data."""
        return {**asdict(self), "directions": list(self.directions)}
