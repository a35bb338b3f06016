"""Measures an index' recall against exact search, on the table's own vectors.

Neighbours are compared by distance and not by id, because rows with equal vectors (captions of one picture, a caption
that occurs twice) are equally good answers. Pictures are also searched by words if the two share a space. Text vectors
lie apart from image vectors, and an index that serves one kind of query may fail the other.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.rows.contract import ROW_ID
from pipelines.tables.provenance import Provenance

if TYPE_CHECKING:
    import lance

K = 10
# Half of the queries choose the parameters, half verify the promised recall.
_QUERIES = 128
_MOST_ROWS_SAMPLED = 20_000
_BLOCK_ROWS = 16_384
# Lance sums in another order than numpy.
_TOLERANCE = 2e-5


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A query whose exact answer is known.

    Attributes:
        source: the column that the query's vector was taken from.
        vector: float32 (dim,), the query.
        own_id: the row that is left out of the answer; None if the vector is from another column.
        exact: cosine distances of the exact K nearest rows, ascending.
    """

    source: str
    vector: NDArray[np.float32]
    own_id: str | None
    exact: list[float]


def recall_at_k(found: Sequence[Sequence[float]], exact: Sequence[Sequence[float]]) -> float:
    """The mean share of found rows that are no farther away than the farthest of the exact neighbours.

    Args:
        found: distances found, one list per query.
        exact: distances of the exact neighbours, one list per query; shorter if there are fewer neighbours.

    Raises:
        ValueError: no query has a neighbour, so recall is undefined.

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


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Recall and latency over some queries.

    Attributes:
        recall: recall@10, the lowest over the columns that the queries come from.
        by_source: column → recall@10 of the queries from it.
        ms: median milliseconds per query.
    """

    recall: float
    by_source: dict[str, float]
    ms: float


def make_probes(dataset: lance.LanceDataset, column: str, provenance: Provenance) -> list[Probe]:
    """Queries for a column, from its own vectors and from columns in the same space; always the same ones.

    The exact answers to all of them come from one pass over the column.
    """
    spaces = provenance.spaces()
    # Fused vectors query only the fused column: only `like` uses one, and it looks the row up in the searched column.
    sources = [c for c in (*provenance.vector_columns(), column) if spaces[c] == spaces[column]]
    asked = [
        (source, row_id if source == column else None, vector)
        for source in dict.fromkeys(sources)
        for row_id, vector in sample_vectors(dataset, source, _QUERIES)
    ]
    if not asked:
        return []
    queries = np.array([vector for _, _, vector in asked], np.float32)
    exact = exact_distances(dataset, column, queries, [own_id for _, own_id, _ in asked])
    return [
        Probe(source=source, vector=vector, own_id=own_id, exact=near)
        for (source, own_id, vector), near in zip(asked, exact, strict=True)
    ]


def exact_distances(
    dataset: lance.LanceDataset, column: str, queries: NDArray[np.float32], own_ids: Sequence[str | None]
) -> list[list[float]]:
    """Cosine distances of the K nearest rows to each query, ascending, by one pass over the column.

    Args:
        dataset: the table's dataset.
        column: a vector column.
        queries: (n, dim) the queries.
        own_ids: for each query the id of a row to leave out, or None.

    Returns:
        For each query up to K distances. Rows without a vector are left out.
    """
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    best = np.full((len(unit), K), np.inf, np.float32)
    asking = [n for n, own_id in enumerate(own_ids) if own_id is not None]
    own = pa.array([own_ids[n] for n in asking], pa.string())
    scan = dataset.scanner(columns=[ROW_ID, column], filter=f"{column} IS NOT NULL", batch_size=_BLOCK_ROWS)
    for batch in scan.to_batches():
        if batch.num_rows == 0:
            continue
        vectors = np.asarray(batch[column].flatten(), np.float32).reshape(batch.num_rows, -1)
        norms = np.linalg.norm(vectors, axis=1)
        distances = 1.0 - unit @ (vectors / np.where(norms > 0, norms, 1.0)[:, None]).T
        places = pc.index_in(own, value_set=batch[ROW_ID].cast(pa.string())).to_pylist()
        for n, place in zip(asking, places, strict=True):
            if place is not None:
                distances[n, place] = np.inf
        both = np.concatenate([best, distances], axis=1)
        best = np.partition(both, K - 1, axis=1)[:, :K]
    return [[float(d) for d in np.sort(row) if np.isfinite(d)] for row in best]


def measure(dataset: lance.LanceDataset, column: str, probes: list[Probe], nearest: dict[str, Any]) -> Measurement:
    """Recall@10 and latency at the given parameters.

    Raises:
        ValueError: there are no probes.
    """
    if not probes:
        raise ValueError(f"recall of {column}: no vectors to measure with")
    by_source, times = {}, []
    for source in dict.fromkeys(probe.source for probe in probes):
        mine = [probe for probe in probes if probe.source == source]
        found = []
        for probe in mine:
            started = time.perf_counter()
            found.append(_distances(dataset, column, probe.vector, probe.own_id, nearest))
            times.append(time.perf_counter() - started)
        by_source[source] = recall_at_k(found, [probe.exact for probe in mine])
    ms = round(statistics.median(times) * 1e3, 3)
    return Measurement(recall=min(by_source.values()), by_source=by_source, ms=ms)


def sample_vectors(dataset: lance.LanceDataset, column: str, most: int) -> list[tuple[str, NDArray[np.float32]]]:
    """Ids and vectors of up to `most` rows that have a vector, however rare they are; always the same rows."""
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
    """Cosine distances of the nearest rows other than the query's own, ascending.

    The query's own row is fetched and dropped. Excluding it by a filter would make the search a slower one than the
    search that is tuned.
    """
    found = dataset.scanner(
        nearest={"column": column, "q": query, "k": K + (own_id is not None), "metric": "cosine", **parameters},
        columns=[ROW_ID, "_distance"],
        disable_scoring_autoprojection=True,
    ).to_table()
    pairs = zip(found[ROW_ID].to_pylist(), found["_distance"].to_pylist(), strict=True)
    return sorted(distance for row_id, distance in pairs if row_id != own_id)[:K]
