"""Finds the fastest query parameters that keep a promised recall: chosen on some queries, verified on others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipelines.search.indexing.parameters import QueryParameters
from pipelines.search.indexing.recall import Measurement, Probe

Measure = Callable[[QueryParameters, list[Probe]], Measurement]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One attempt: parameters and their result on the choosing queries.

    Attributes:
        parameters: the parameters tried.
        recall: recall@10, the lowest over the sources of queries.
        by_source: column → recall@10 of the queries from it.
        ms: median milliseconds per query.
    """

    parameters: QueryParameters
    recall: float
    by_source: dict[str, float]
    ms: float


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The result of tuning.

    Attributes:
        parameters: the fastest parameters that keep the promise; None if none do.
        ms: median milliseconds per query at these parameters.
        points: all attempts, for the recall-latency curve.
        best: the attempt with the highest recall.
    """

    parameters: QueryParameters | None
    ms: float | None
    points: tuple[Point, ...]
    best: Point


def tune(lines: list[list[QueryParameters]], probes: list[Probe], target: float, measure: Measure) -> Tuned:
    """Try parameters, line by line until one reaches the target; verify the fastest of those, then the next.

    The best of several results on the same queries is biased upwards. So half of the queries choose, and the other half
    verify the promised recall.

    Args:
        lines: parameters to try; along each line they get slower and find more.
        probes: queries whose exact answers are known.
        target: the promised recall, for each kind of query.
        measure: returns recall and latency at given parameters.
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
    """Two halves: every other probe of each source. A single probe is in both."""
    choosing, deciding = [], []
    for source in dict.fromkeys(probe.source for probe in probes):
        mine = [probe for probe in probes if probe.source == source]
        choosing += mine[::2]
        deciding += mine[1::2] or mine
    return choosing, deciding


def _point(parameters: QueryParameters, found: Measurement) -> Point:
    return Point(parameters=parameters, recall=found.recall, by_source=found.by_source, ms=found.ms)
