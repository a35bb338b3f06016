"""The report of a mining run: yield, dropped candidates by reason, scores, recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.train.mining.histograms import BINS, coarse, no_scores
from pipelines.train.mining.judging import DROPPED
from pipelines.train.mining.mining_settings import Direction
from pipelines.train.mining.tasks import MinedBlock

if TYPE_CHECKING:
    from rich.console import RenderableType

_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class DirectionReport:
    """The results of one direction.

    Attributes:
        direction: the direction that was mined.
        method: `exact` or `ann`.
        probes: number of lists that each anchor searched; None for exact search.
        lists: number of lists in all; None for exact search.
        recall: recall of the candidate lists against exact ones, on a sample (1.0 for exact search).
        anchors: number of rows for which negatives were searched.
        anchors_served: number of anchors that got at least one negative.
        kept: number of negatives.
        mean_negatives: negatives per anchor, the yield.
        dropped: number of dropped candidates by reason.
        scores: `edges`, `positives` and `negatives` of the histogram.
    """

    direction: Direction
    method: str
    probes: int | None
    lists: int | None
    recall: float
    anchors: int
    anchors_served: int
    kept: int
    mean_negatives: float
    dropped: dict[str, int]
    scores: dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class MiningReport:
    """The results of a mining run; `margin` is the number that was used, whether calibrated or given."""

    table: str
    table_version: int
    encoder: dict[str, Any]
    out: str
    out_version: int
    out_rows: int
    margin: float
    directions: tuple[DirectionReport, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {**asdict(self), "directions": [asdict(direction) for direction in self.directions]}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        facts = Table("direction", "anchors", "kept", "per anchor", "recall", "dropped", box=None, pad_edge=False)
        bars = []
        for d in self.directions:
            dropped = ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in d.dropped.items() if n)
            method = f"{d.recall:.3f} ({d.method})"
            facts.add_row(d.direction, f"{d.anchors:,}", f"{d.kept:,}", f"{d.mean_negatives:.2f}", method, dropped)
            low, high = d.scores["edges"][0], d.scores["edges"][-1]
            bars += [
                Text(f"{d.direction} {name:9} {low:+.2f} {bar_line(d.scores[name])} {high:+.2f}")
                for name in ("positives", "negatives")
            ]
        where = f"{self.out} version {self.out_version}: {self.out_rows:,} rows"
        source = f"from {self.table} version {self.table_version}, encoder {self.encoder['name']}"
        return Group(facts, Text(""), *bars, Text(""), Text(f"{where}, {source}; margin {self.margin:.4f}"))


def bar_line(counts: Sequence[int]) -> str:
    """Counts as a line of bars; every count above zero has a visible bar.

    >>> bar_line([0, 1, 800])
    ' ▁█'
    """
    most = max([*counts, 1])
    return "".join(_BARS[-(-n * (len(_BARS) - 1) // most)] for n in counts)


def summarise(
    direction: Direction, blocks: Sequence[MinedBlock], *, lists: int | None, probes: int | None, recall: float
) -> DirectionReport:
    """The report of one direction, from the results of its tasks."""
    anchors, kept = sum(block.anchors for block in blocks), sum(block.kept for block in blocks)
    positives = sum((block.positives for block in blocks), no_scores())
    negatives = sum((block.negatives for block in blocks), no_scores())
    return DirectionReport(
        direction=direction,
        method="exact" if probes is None else "ann",
        probes=probes,
        lists=lists,
        recall=round(recall, 4),
        anchors=anchors,
        anchors_served=sum(block.served for block in blocks),
        kept=kept,
        mean_negatives=round(kept / anchors, 4),
        dropped={v.name.lower(): sum(block.verdicts[v.name.lower()] for block in blocks) for v in DROPPED},
        scores=coarse(positives, negatives),
    )


def plot(report: MiningReport, path: Path) -> None:
    """Draw the histograms of scores of all directions into an image file.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(report.directions), 3.5), layout="constrained")
    axes = figure.subplots(1, len(report.directions), squeeze=False)[0]
    for axis, found in zip(axes, report.directions, strict=True):
        edges = found.scores["edges"]
        for name in ("positives", "negatives"):
            weights = [n / max(1, sum(found.scores[name])) for n in found.scores[name]]
            axis.hist(edges[:BINS], bins=edges, weights=weights, alpha=0.6, label=name)
        axis.set(title=found.direction.replace("_", " "), xlabel="cosine", ylabel="share")
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
