"""How much of the exact answer an index gives, measured on the table's own vectors.

Neighbours are compared by distance and not by id: rows with equal vectors (captions of one picture, captions said
twice) may answer for each other. Pictures are also asked for by words where the two share a space, since text
vectors lie apart from picture vectors and an index that serves the one may fail the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.contract import ROW_ID
from pipelines.provenance import Provenance
from pipelines.retrieval.filters import quote

if TYPE_CHECKING:
    import lance

K = 10
_QUERIES = 48
_MOST_ROWS_SAMPLED = 20_000
_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One query whose exact answer is known.

    Attributes:
        source: the column that the query's vector was taken from.
        vector: float32 (dim,).
        own_id: the row left out of the answer, None where the vector is from another column.
        exact: cosine distances of the exact K nearest rows, ascending.
    """

    source: str
    vector: NDArray[np.float32]
    own_id: str | None
    exact: list[float]


def recall_at_k(found: Sequence[Sequence[float]], exact: Sequence[Sequence[float]]) -> float:
    """The mean share of the exact neighbours' places filled by rows no farther than the farthest of them.

    Args:
        found: distances found, one list a query.
        exact: distances of the exact neighbours, one list a query, as long as there are neighbours.

    Raises:
        ValueError: no query has a neighbour, so nothing can be said.

    >>> recall_at_k([[0.1, 0.4]], [[0.1, 0.2]])
    0.5
    """
    shares = [
        sum(distance <= max(best) + _TOLERANCE for distance in got) / len(best)
        for got, best in zip(found, exact, strict=True)
        if best
    ]
    if not shares:
        raise ValueError("recall: no query to measure with; give at least one that has neighbours")
    return sum(shares) / len(shares)


def make_probes(dataset: lance.LanceDataset, column: str, provenance: Provenance) -> list[Probe]:
    """Queries for a column, from its own vectors and from those of columns in the same space; the same each time."""
    towers = provenance.vector_columns()
    sources = [c for c, tower in towers.items() if tower.space == towers[column].space]
    probes = []
    for source in sources:
        for row_id, vector in sample_vectors(dataset, source, _QUERIES):
            own_id = row_id if source == column else None
            exact = _distances(dataset, column, vector, own_id, {"use_index": False})
            probes.append(Probe(source=source, vector=vector, own_id=own_id, exact=exact))
    return probes


def measure(dataset: lance.LanceDataset, column: str, probes: list[Probe], nearest: dict[str, Any]) -> float:
    """Recall@10 at the given parameters: the lowest over the columns that queries come from.

    Raises:
        ValueError: there are no probes.
    """
    recalls = []
    for source in dict.fromkeys(probe.source for probe in probes):
        mine = [probe for probe in probes if probe.source == source]
        found = [_distances(dataset, column, probe.vector, probe.own_id, nearest) for probe in mine]
        recalls.append(recall_at_k(found, [probe.exact for probe in mine]))
    if not recalls:
        raise ValueError(f"recall of {column}: no vectors to measure with")
    return min(recalls)


def sample_vectors(dataset: lance.LanceDataset, column: str, most: int) -> list[tuple[str, NDArray[np.float32]]]:
    """Ids and vectors of up to `most` rows that have one, however rare they are; the same each time."""
    count, rows = dataset.count_rows(), dataset.count_rows(f"{column} IS NOT NULL")
    if rows == 0:
        return []
    size = min(count, math.ceil(most * count / rows * 3), _MOST_ROWS_SAMPLED)
    places = np.random.default_rng(0).choice(count, size=size, replace=False)
    found = dataset.take(np.sort(places).tolist(), columns=[ROW_ID, column])
    found = found.filter(found[column].is_valid())
    if found.num_rows == 0:
        found = dataset.to_table(columns=[ROW_ID, column], filter=f"{column} IS NOT NULL", limit=most)
    chosen = np.linspace(0, found.num_rows - 1, min(most, found.num_rows)).astype(int)
    found = found.take(chosen)
    vectors = [np.array(vector, np.float32) for vector in found[column].to_pylist()]
    return list(zip(found[ROW_ID].to_pylist(), vectors, strict=True))


def _distances(
    dataset: lance.LanceDataset,
    column: str,
    query: NDArray[np.float32],
    own_id: str | None,
    parameters: dict[str, Any],
) -> list[float]:
    """Cosine distances of the nearest rows other than the query's own, ascending."""
    scan = dataset.scanner(
        nearest={"column": column, "q": query, "k": K, "metric": "cosine", **parameters},
        columns=["_distance"],
        filter=None if own_id is None else f"{ROW_ID} != {quote(own_id)}",
        prefilter=True,
        disable_scoring_autoprojection=True,
    )
    return sorted(scan.to_table()["_distance"].to_pylist())
