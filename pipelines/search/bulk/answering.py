"""Bulk search: millions of queries at once, as Ray tasks, from one table against another, into a table of results.

An index answers one query at a time. Here all queries of a task are compared with each block of the table in one matrix
product. The search is exact up to 2e10 pairs. Above that it uses lists of k-means, whose recall is measured before
anything is searched (see `pipelines.vectors.lists`). Each task's results land in one commit, so a rerun after a crash
does only the missing tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.protocol import Modality
from pipelines.rows.contract import CAPTION, IMAGE_URI, ITEM_ID, ROW_ID, VECTOR_COLUMNS
from pipelines.search.bulk.request import BulkRecallError, BulkReport, BulkSettings, check_request
from pipelines.search.bulk.results import PART, QUERY, QUERY_ID, RANK, SCORE, begin_results, land_results, stage_results
from pipelines.store.retries import retry
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_at, open_dataset
from pipelines.vectors.exact import SAMPLE, build_lists, search_all, search_lists
from pipelines.vectors.lists import Lists, plan_lists, plan_sample, train_centroids
from pipelines.vectors.scan import Block, dimension, scan_blocks, take_vectors

if TYPE_CHECKING:
    import lance

_OFFSET = "_rowoffset"
_EXACT_UP_TO_PAIRS = 2e10
_QUERIES_PER_TASK = 16_384
_MOST_DEPTH = 4_096
_RETRIES = 3


@dataclass(frozen=True, kw_only=True)
class _Job:
    """The data that every task needs, as plain data."""

    queries: TableRef
    queries_version: int
    table: TableRef
    version: int
    out: TableRef
    schema: pa.Schema
    settings: BulkSettings

    @property
    def searched(self) -> Modality:
        """The vectors of the table that are compared."""
        assert self.settings.search is not None
        return self.settings.search

    def open(self) -> lance.LanceDataset:
        return open_at(self.table, self.version)

    def open_queries(self) -> lance.LanceDataset:
        return open_at(self.queries, self.queries_version)

    def blocks(self) -> Iterator[Block]:
        return scan_blocks(self.open(), self.settings.where, modalities=[self.searched])


@dataclass(frozen=True)
class _Gallery:
    """The searched rows of the table, in the order of the scan.

    Attributes:
        offset: int64 (rows,), offset in the dataset.
        there: bool (rows,), whether the row has a vector.
    """

    offset: NDArray[np.int64]
    there: NDArray[np.bool_]


def search_many(
    queries: TableRef,
    table: TableRef,
    out: TableRef,
    settings: BulkSettings,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> BulkReport:
    """Search a table with each row of another table that the same encoder embedded.

    Results that an interrupted run with the same settings left are kept; those of another run are replaced.

    Args:
        queries: the table whose rows are the queries.
        table: the table to search.
        out: the table of results: `query_id`, `query` (its caption, or its picture's URI), `rank` (from 0), `row_id`,
            `score`, and the requested columns.
        settings: which vectors, how many results, which filter and method.
        progress: called with (queries done, queries in all).

    Raises:
        FileNotFoundError: there is no such table.
        EncoderMismatchError: the vectors of the two tables are from different encoders.
        ValueError: a vector column is missing, the filter is invalid, or `out` is another kind of table.
        BulkRecallError: the lists miss too much. Nothing was written.
    """
    started = time.perf_counter()
    asking, dataset = open_dataset(queries), open_dataset(table)
    settings, schema = check_request(queries, asking, table, dataset, settings)
    job = _Job(
        queries=queries,
        queries_version=int(asking.version),
        table=table,
        version=int(dataset.version),
        out=out,
        schema=schema,
        settings=settings,
    )
    offsets, skipped = _query_offsets(job)
    gallery = _read_gallery(job)
    method = settings.method if settings.method != "auto" else plan_method(len(offsets), int(gallery.there.sum()))
    parts = [offsets[start : start + _QUERIES_PER_TASK] for start in range(0, len(offsets), _QUERIES_PER_TASK)]
    lists, recall = _lists(job, gallery, offsets) if method == "lists" and len(offsets) else (None, 1.0)
    done = begin_results(out, schema)
    todo = [number for number in range(len(parts)) if number not in done]
    reused = sum(len(parts[number]) for number in done if number < len(parts))
    settled = reused
    progress(settled, len(offsets))
    for number in _search_parts(job, (gallery, lists), parts, todo):
        settled += len(parts[number])
        progress(settled, len(offsets))
    written = open_dataset(out)
    seconds = time.perf_counter() - started
    return BulkReport(
        out=str(out),
        version=int(written.version),
        queries=len(offsets),
        skipped=skipped,
        gallery=int(gallery.there.sum()),
        results=written.count_rows(),
        reused=reused,
        search=job.searched,
        method=method,
        recall=round(recall, 4),
        seconds=round(seconds, 2),
        queries_per_s=round((len(offsets) - reused) / seconds, 1),
    )


def _search_parts(
    job: _Job, held: tuple[_Gallery, Lists | None], parts: list[NDArray[np.int64]], todo: list[int]
) -> Iterator[int]:
    """Search the parts on Ray, in any order. Yields each part's number once its results have landed."""
    import ray

    from pipelines.cluster.session import ensure_ray, plain_errors

    if not todo:
        return
    ensure_ray()
    shared = ray.put(held)
    task: Any = ray.remote(search_part).options(max_retries=_RETRIES, num_cpus=1)
    running = {task.remote(job, shared, number, parts[number]): number for number in todo}
    with plain_errors():
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            number = running.pop(ready[0])
            land_results(job.out, number, ray.get(ready[0]))
            yield number


def plan_method(queries: int, gallery: int) -> Literal["exact", "lists"]:
    """`exact` as long as all pairs can be compared in reasonable time (up to 2e10), else `lists`."""
    return "exact" if queries * gallery <= _EXACT_UP_TO_PAIRS else "lists"


def search_part(job: _Job, held: tuple[_Gallery, Lists | None], part: int, offsets: NDArray[np.int64]) -> list[str]:
    """Search for some queries and write their results as fragments; a Ray task.

    Args:
        job: the run.
        held: the gallery, and its lists for approximate search (None for exact search).
        part: the part's number.
        offsets: int64 (q,), offsets of the queries in their table.

    Returns:
        Metadata of the fragments, as JSON.
    """
    gallery, lists = held
    settings = job.settings
    (vectors,) = take_vectors(job.open_queries(), offsets, [settings.ask])
    items = _items(job, gallery) if settings.distinct else None
    depth = settings.k
    scores = np.full((len(offsets), settings.k), -np.inf, np.float32)
    places = np.full((len(offsets), settings.k), -1, np.int64)
    waiting = np.arange(len(offsets))
    while len(waiting):
        if lists is None:
            found = search_all(job.blocks(), job.searched, gallery.there, vectors[waiting], depth)
        else:
            found = search_lists(job.blocks(), job.searched, lists, vectors[waiting], depth)
        best = found if items is None else first_of_items(*found, items, settings.k)
        scores[waiting], places[waiting] = best
        # The best rows may belong to fewer than k distinct items. Then the search goes deeper, if there are more rows.
        has_more = (found[1][:, -1] >= 0) & (best[1][:, -1] < 0)
        waiting = waiting[has_more] if items is not None and depth < _MOST_DEPTH else waiting[:0]
        depth *= 4
    return stage_results(job.out, _results(job, gallery, offsets, scores, places, part))


def first_of_items(
    scores: NDArray[np.float32], places: NDArray[np.int64], items: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best row of each item, at most `k` of them.

    Args:
        scores: float32 (q, depth), best first.
        places: int64 (q, depth), positions in the gallery; −1 past the last result.
        items: int64 (rows,), each row's item.
        k: largest number of rows per query.

    Returns:
        Scores, float32 (q, k), and places, int64 (q, k), padded with −inf and −1.
    """
    best = np.full((len(places), k), -np.inf, np.float32)
    rows = np.full((len(places), k), -1, np.int64)
    for query in range(len(places)):
        there = places[query][places[query] >= 0]
        _, first = np.unique(items[there], return_index=True)
        chosen = np.sort(first)[:k]
        best[query, : len(chosen)], rows[query, : len(chosen)] = scores[query, chosen], there[chosen]
    return best, rows


def _query_offsets(job: _Job) -> tuple[NDArray[np.int64], int]:
    """Offsets of the queries that have a vector, int64 (q,), and the number of queries that have none."""
    dataset = job.open_queries()
    column = VECTOR_COLUMNS[job.settings.ask]
    scanner = dataset.scanner(columns=[_OFFSET], filter=f"{column} IS NOT NULL", scan_in_order=True)
    offsets = retry(lambda: scanner.to_table(), job.queries.uri)[_OFFSET].to_numpy().astype(np.int64)
    return offsets, dataset.count_rows() - len(offsets)


def _read_gallery(job: _Job) -> _Gallery:
    offsets, there = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for block in scan_blocks(job.open(), job.settings.where, columns=[_OFFSET], modalities=[job.searched]):
        offsets.append(block.rows[_OFFSET].to_numpy().astype(np.int64))
        there.append(block.has[job.searched])
    return _Gallery(np.concatenate(offsets), np.concatenate(there))


def _lists(job: _Job, gallery: _Gallery, offsets: NDArray[np.int64]) -> tuple[Lists, float]:
    """Lists over the gallery, and their measured recall.

    Raises:
        BulkRecallError: the recall is below the target.
    """
    settings, dataset = job.settings, job.open()
    rng = np.random.default_rng(settings.seed)
    rows = np.flatnonzero(gallery.there)
    count = plan_lists(len(rows))
    size = plan_sample(count, len(rows), dimension(dataset, job.searched))
    trained = np.sort(rng.choice(rows, size, replace=False))
    (sample,) = take_vectors(dataset, gallery.offset[trained], [job.searched])
    chosen = np.sort(rng.permutation(offsets)[: 2 * SAMPLE])
    (queries,) = take_vectors(job.open_queries(), chosen, [settings.ask])
    # The lists are tuned for slightly more than the target, because other queries than the tuning ones must reach it.
    goal = min(1.0, settings.target_recall + (1 - settings.target_recall) / 2)
    centroids = train_centroids(sample, count, settings.seed)
    lists, recall = build_lists(job.blocks(), job.searched, gallery.there, centroids, queries, settings.k, goal=goal)
    if recall < settings.target_recall:
        raise BulkRecallError(
            f"table {job.table}: {lists.probes} of {count} lists find {recall:.3f} of the exact results, less than "
            f"target_recall {settings.target_recall}; lower it, or use --method exact"
        )
    return lists, recall


def _items(job: _Job, gallery: _Gallery) -> NDArray[np.int64]:
    """Each row's item as a number, int64 (rows,); a row without an item gets a number of its own."""
    where = f"({job.settings.where})" if job.settings.where is not None else None
    column = job.open().scanner(columns=[ITEM_ID], filter=where, scan_in_order=True).to_table()[ITEM_ID]
    encoded = column.combine_chunks().dictionary_encode()
    numbers = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
    alone = np.flatnonzero(numbers < 0)
    numbers[alone] = len(encoded.dictionary) + np.arange(len(alone))
    assert len(numbers) == len(gallery.offset)
    return numbers


def _results(
    job: _Job,
    gallery: _Gallery,
    offsets: NDArray[np.int64],
    scores: NDArray[np.float32],
    places: NDArray[np.int64],
    part: int,
) -> pa.Table:
    """Rows of the results. Ids and columns are read only for these rows."""
    query, rank = np.nonzero(places >= 0)
    found = places[query, rank]
    said = CAPTION if job.settings.ask == "text" else IMAGE_URI
    asked = job.open_queries().take(offsets.tolist(), columns=[ROW_ID, said]).take(pa.array(query))
    needed, which = np.unique(gallery.offset[found], return_inverse=True)
    columns = [ROW_ID, *(name for name in job.settings.columns if name != ROW_ID)]
    rows = job.open().take(needed.tolist(), columns=columns).take(pa.array(which.reshape(-1)))
    values: dict[str, Any] = {
        QUERY_ID: asked[ROW_ID],
        QUERY: asked[said],
        RANK: pa.array(rank, pa.int32()),
        SCORE: pa.array(scores[query, rank], pa.float32()),
        PART: pa.array(np.full(len(query), part), pa.int32()),
        **{name: rows[name] for name in columns},
    }
    return pa.table([values[name] for name in job.schema.names], schema=job.schema)
