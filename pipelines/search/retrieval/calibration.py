"""Calibration: turns a cosine into the probability that a hit is a match, fitted on the table's own pairs.

Cosines between words and pictures are low, close together, and different for every encoder: 0.31 alone means nothing to
a reader. So some captions are used as queries, as a user would ask them. It is known which hits belong to the caption's
own item. A logistic curve through scores and matches gives the probability (Platt: Probabilistic Outputs for Support
Vector Machines, 1999). Scores are measured relative to the query's cosine to the mean of all vectors, which varies
between queries more than matches differ from other hits. The curve holds for queries like the captions, and counts a
picture of another item as no match even if a user would accept it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.rows.contract import ITEM_ID, ROW_ID
from pipelines.search.indexing.parameters import read_parameters
from pipelines.search.indexing.recall import sample_vectors
from pipelines.tables.provenance import Provenance

if TYPE_CHECKING:
    import lance

_KEY = "isthmus.calibration."
_QUERIES = 600
_DEPTH = 30
_CENTRE_ROWS = 4_000
_BINS = 10
_NEWTON_STEPS = 50
# With fewer matches or non-matches than this, a curve would fit noise.
_FEWEST = 20


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The calibration curve of one direction.

    Attributes:
        column: the column that is searched.
        source: the column that holds vectors of the queries' kind.
        centre: (dim,) mean of the column's vectors, each scaled to length 1.
        slope: increase of the log odds per unit of cosine above the query's cosine to the centre.
        intercept: log odds at the query's cosine to the centre.
        queries: number of queries used.
        matches: share of their hits that were matches.
        brier: mean squared error of the probabilities, on hits of queries that were not used in the fit.
        error: expected calibration error on the same hits, in ten bins.
    """

    column: str
    source: str
    centre: tuple[float, ...]
    slope: float
    intercept: float
    queries: int
    matches: float
    brier: float
    error: float

    def probability(self, scores: NDArray[np.float64], query: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities of a match for a query's hits.

        Args:
            scores: (n,) cosines of the hits.
            query: (dim,) the query's vector.

        Returns:
            (n,) probabilities.
        """
        own = _own_place(query, np.array(self.centre))
        return _logistic(self.slope * (scores - own) + self.intercept)

    def rise_at(self, probability: float) -> float:
        """How far a hit's cosine must be above the query's cosine to the centre to be a match with this probability."""
        return float((np.log(probability / (1 - probability)) - self.intercept) / self.slope)


def calibrate(dataset: lance.LanceDataset, table: str) -> list[Calibration]:
    """Fit the curve of each direction between two columns that share a space, and store it with the table.

    Args:
        dataset: the table's dataset.
        table: the table's name, for messages.

    Raises:
        ValueError: no two columns share a space, there are too few pairs, or scores do not separate matches from
            others.
    """
    towers = Provenance.from_schema(dataset.schema, table).vector_columns()
    directions = [(a, b) for a in towers for b in towers if a != b and towers[a].space == towers[b].space]
    if not directions:
        raise ValueError(
            f"table {table}: words and pictures do not share a space, so scores between them mean nothing; "
            "fine-tune the towers, or use an encoder such as CLIP"
        )
    found = [_calibrate(dataset, column, source, table) for column, source in directions]
    dataset.update_config({f"{_KEY}{c.column}.{c.source}": json.dumps(asdict(c)) for c in found})
    return found


def read_calibration(dataset: lance.LanceDataset, column: str, source: str) -> Calibration | None:
    """The stored curve of a direction; None if there is none."""
    raw = dataset.config().get(f"{_KEY}{column}.{source}")
    if raw is None:
        return None
    stored = json.loads(raw)
    return Calibration(**{**stored, "centre": tuple(stored["centre"])})


def _calibrate(dataset: lance.LanceDataset, column: str, source: str, table: str) -> Calibration:
    centre = _centre(dataset, column)
    rises, matches, queries = _hits(dataset, column, source, centre)
    fits = queries % 2 == 0
    kinds = [int(matches[part].sum()) for part in (fits, ~fits)] + [int((~matches)[fits].sum())]
    if min(kinds) < _FEWEST:
        raise ValueError(
            f"table {table}: {int(matches.sum())} matches among the {len(matches)} best hits of "
            f"{len(set(queries))} rows of {source}; too few to fit a curve (each half needs {_FEWEST} of either kind)"
        )
    slope, intercept = fit_logistic(rises[fits], matches[fits])
    if slope <= 0:
        raise ValueError(f"table {table}: higher scores of {source} to {column} are no likelier matches; no curve fits")
    held_out = _logistic(slope * rises[~fits] + intercept)
    return Calibration(
        column=column,
        source=source,
        centre=tuple(round(float(value), 6) for value in centre),
        slope=slope,
        intercept=intercept,
        queries=len(set(queries)),
        matches=round(float(matches.mean()), 4),
        brier=round(float(np.mean((held_out - matches[~fits]) ** 2)), 4),
        error=round(calibration_error(held_out, matches[~fits]), 4),
    )


def _hits(
    dataset: lance.LanceDataset, column: str, source: str, centre: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """For the best hits of some rows, one hit per item: how far the cosine rises, whether it matches, which query.

    Returns:
        Three arrays (n,): float64 rise of the cosine, bool match (the hit is of the row's own item), int64 query
        number.
    """
    parameters = read_parameters(dataset, column)
    extra: dict[str, Any] = parameters.nearest(_DEPTH) if parameters else {"use_index": False}
    asked = sample_vectors(dataset, source, _QUERIES)
    ids = ", ".join("'" + row_id.replace("'", "''") + "'" for row_id, _ in asked)
    rows = dataset.to_table(columns=[ROW_ID, ITEM_ID], filter=f"{ROW_ID} IN ({ids})") if asked else None
    items = dict(zip(rows[ROW_ID].to_pylist(), rows[ITEM_ID].to_pylist(), strict=True)) if rows else {}
    rises: list[float] = []
    matches: list[bool] = []
    queries: list[int] = []
    for n, (row_id, vector) in enumerate(asked):
        hits = dataset.scanner(
            nearest={"column": column, "q": vector, "k": _DEPTH, "metric": "cosine", **extra},
            columns=[ITEM_ID, "_distance"],
            disable_scoring_autoprojection=True,
        ).to_table()
        best: dict[str, float] = {}
        for item, distance in zip(hits[ITEM_ID].to_pylist(), hits["_distance"].to_pylist(), strict=True):
            best[item] = max(best.get(item, -1.0), 1.0 - distance)
        own = _own_place(vector, centre)
        rises += (score - own for score in best.values())
        matches += [item == items[row_id] for item in best]
        queries += [n] * len(best)
    return np.array(rises, np.float64), np.array(matches, bool), np.array(queries, np.int64)


def _centre(dataset: lance.LanceDataset, column: str) -> NDArray[np.float64]:
    vectors = np.array([vector for _, vector in sample_vectors(dataset, column, _CENTRE_ROWS)], np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray((vectors / np.where(norms > 0, norms, 1.0)).mean(axis=0))


def _own_place(query: NDArray[np.float32], centre: NDArray[np.float64]) -> float:
    return float(query.astype(np.float64) @ centre / (np.linalg.norm(query) or 1.0))


def fit_logistic(scores: NDArray[np.float64], matches: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and intercept of P(match) = 1 / (1 + exp(-(slope · score + intercept))), by maximum likelihood.

    Targets are pulled slightly inwards, as in Platt's paper, so that the slope stays finite even if scores separate
    matches from others perfectly. Solved by Newton's method on standardised scores.

    Args:
        scores: (n,) scores.
        matches: (n,) bool; must contain both matches and non-matches.
    """
    positives, negatives = int(matches.sum()), int((~matches).sum())
    targets = np.where(matches, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    mean, spread = float(scores.mean()), float(scores.std()) or 1.0
    design = np.stack([(scores - mean) / spread, np.ones_like(scores)], axis=1)
    weights = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        found = _logistic(design @ weights)
        gradient = design.T @ (found - targets)
        hessian = (design * (found * (1 - found))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights -= step / max(1.0, float(np.abs(step).max()) / 5)
        if np.abs(step).max() < 1e-9:
            break
    slope = float(weights[0] / spread)
    return slope, float(weights[1] - slope * mean)


def calibration_error(probabilities: NDArray[np.float64], matches: NDArray[np.bool_]) -> float:
    """Expected calibration error: mean absolute difference of predicted and observed match rates, over ten equal bins.

    Args:
        probabilities: (n,) predicted probabilities.
        matches: (n,) bool, whether each hit is a match.
    """
    bins = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
    error = 0.0
    for n in range(_BINS):
        inside = bins == n
        if inside.any():
            error += float(inside.mean()) * abs(float(probabilities[inside].mean()) - float(matches[inside].mean()))
    return error


def _logistic(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(odds, -50, 50))))
