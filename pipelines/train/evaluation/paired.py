"""Comparison of two evaluations on the same queries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.train.evaluation.bootstrap import Difference, paired_difference
from pipelines.train.evaluation.evaluate import DirectionResult, Evaluation


def compare(a: Evaluation, b: Evaluation, metric: str, direction: str) -> Difference:
    """The gain of `b` over `a`, with its 95 % interval and p-value.

    Raises:
        ValueError: the direction or the metric was not evaluated, or the queries differ.
    """
    for evaluation in (a, b):
        if direction not in evaluation.directions:
            raise ValueError(f"direction {direction!r}: not evaluated; give one of {', '.join(evaluation.directions)}")
    first, second = a.directions[direction], b.directions[direction]
    if metric not in first.values:
        raise ValueError(f"metric {metric!r}: give one of {', '.join(first.values)}")
    order = _alignment(first, second, a.table, b.table)
    return paired_difference(first.values[metric], second.values[metric][order], first.clusters, a.settings.seed)


def _alignment(first: DirectionResult, second: DirectionResult, a: str, b: str) -> NDArray[np.int64]:
    """The place of each query of the first evaluation in the second."""
    places = {row_id: i for i, row_id in enumerate(second.query_ids)}
    if set(places) != set(first.query_ids):
        missing = sorted(set(first.query_ids) ^ set(places))
        raise ValueError(
            f"compare: {a} and {b} answer different queries ({len(missing)} are in one only, {missing[0]!r} among them)"
            "; embed the same corpus with the same keys, and evaluate with the same filters"
        )
    return np.array([places[row_id] for row_id in first.query_ids], np.int64)
