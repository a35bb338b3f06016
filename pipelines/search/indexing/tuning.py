"""The fastest query parameters that keep a promised recall, chosen on some queries and verified on others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipelines.search.indexing.parameters import QueryParameters
from pipelines.search.indexing.recall import Measurement, Probe

Measure = Callable[[QueryParameters, list[Probe]], Measurement]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One try: parameters and what they gave on the queries that choose."""

    parameters: QueryParameters
    recall: float
    by_source: dict[str, float]
    ms: float


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What tuning found.

    Attributes:
        parameters: the fastest that keep the promise, None where none do.
        ms: median milliseconds of a query at these parameters.
        points: every try, for the recall-latency curve.
        best: the try with the highest recall.
    """

    parameters: QueryParameters | None
    ms: float | None
    points: tuple[Point, ...]
    best: Point


def tune(lines: list[list[QueryParameters]], probes: list[Probe], target: float, measure: Measure) -> Tuned:
    """Try parameters, line by line until one reaches the target; verify the fastest of those, then the next.

    Choosing the best of several on the same queries flatters it, so half of the queries choose and the other half
    decide whether the promise is kept.

    Args:
        lines: parameters to try; in each line they get slower and find more.
        probes: queries whose exact answers are known.
        target: the recall that is promised, for each kind of query.
        measure: gives recall and latency at some parameters.
    """
    choosing, deciding = _halves(probes)
    points: list[Point] = []
    reached: list[Point] = []
    for line in lines:
        for parameters in line:
            point = _point(parameters, measure(parameters, choosing))
            points.append(point)
            if point.recall >= target:
                reached.append(point)
                break
    for point in sorted(reached, key=lambda p: p.ms):
        for parameters in _from(lines, point.parameters):
            kept = measure(parameters, deciding)
            if kept.recall >= target:
                found = replace(parameters, recall=round(kept.recall, 4))
                return Tuned(parameters=found, ms=kept.ms, points=tuple(points), best=point)
    return Tuned(parameters=None, ms=None, points=tuple(points), best=max(points, key=lambda p: p.recall))


def _from(lines: list[list[QueryParameters]], first: QueryParameters) -> list[QueryParameters]:
    """The parameters of a line from `first` on."""
    line = next(line for line in lines if first in line)
    return line[line.index(first) :]


def _halves(probes: list[Probe]) -> tuple[list[Probe], list[Probe]]:
    """Every other probe of each source; a single one serves for both."""
    choosing, deciding = [], []
    for source in dict.fromkeys(probe.source for probe in probes):
        mine = [probe for probe in probes if probe.source == source]
        choosing += mine[::2]
        deciding += mine[1::2] or mine
    return choosing, deciding


def _point(parameters: QueryParameters, found: Measurement) -> Point:
    return Point(parameters=parameters, recall=found.recall, by_source=found.by_source, ms=found.ms)
