"""What a mining run is asked to do. Validates itself; plain data, so that it travels to workers and into metadata."""

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
        version: of the table, None for the latest.
        tag: of the table, in place of `version`.
        negatives: the most negatives of an anchor and direction.
        skip: so many of the best candidates that are no positives are left out, whatever their score.
        candidates: how many of the best-ranked rows are considered, besides the skipped.
        margin: a candidate is kept if s_neg <= s_pos - |s_pos| * margin; "auto" calibrates it
            (see `pipelines.train.mining.margins`).
        directions: what is mined.
        where: SQL filter on the table: only these rows are anchors and candidates.
        method: exact compares all; ann searches the nearest lists of k-means centroids.
        anchors: so many anchors, sampled by `seed`; None takes every row.
        near_duplicate_image: cosine of two pictures from which on they count as the same.
        near_duplicate_text: the same of two captions.
        target_recall: of the approximate candidates against the exact ones: the fewest probes that reach it on a
            sample are taken.
        min_recall: of the same, measured on other anchors; below it the run is refused.
        probes: lists searched for an anchor; None takes what `target_recall` needs.
        rows_per_task: anchors of a Ray task; a worker's memory grows with it.
        seed: of every sample.
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
        """Refuse what cannot be.

        Raises:
            ValueError: names the setting, its value and what is allowed.
        """
        least = {"negatives": 1, "candidates": 1, "rows_per_task": 1, "skip": 0, "anchors": 1, "probes": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"mine: {name} {value}: at least {low}")
        if self.version is not None and self.tag is not None:
            raise ValueError(f"mine: version {self.version} and tag {self.tag!r}: give one of the two")
        if self.margin != "auto" and not 0 <= float(self.margin) <= 1:
            raise ValueError(f"mine: margin {self.margin}: from 0 to 1, or auto")
        if unknown := set(self.directions) - set(DIRECTIONS):
            raise ValueError(f"mine: direction {unknown.pop()!r}: give {' or '.join(DIRECTIONS)}")
        if not self.directions:
            raise ValueError(f"mine: no direction; give {' or '.join(DIRECTIONS)}")
        for name in ("target_recall", "min_recall"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"mine: {name} {getattr(self, name)}: above 0, up to 1")
        for name in ("near_duplicate_image", "near_duplicate_text"):
            if not -1 <= getattr(self, name) <= 2:
                raise ValueError(f"mine: {name} {getattr(self, name)}: a cosine (above 1 switches the check off)")

    @property
    def depth(self) -> int:
        """Length of a candidate list."""
        return self.skip + self.candidates

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready data."""
        return {**asdict(self), "directions": list(self.directions)}
