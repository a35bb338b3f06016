"""Builds indexes: vectors (cosine), full text in Chinese and English, keys. Measures the recall of vector indexes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipelines.rows.contract import CAPTION, ITEM_ID, ROW_ID
from pipelines.search.indexing.distributed import create_on_ray
from pipelines.search.indexing.parameters import (
    IndexPlan,
    QueryParameters,
    candidate_lines,
    fallback_plans,
    forget_parameters,
    plan_index,
    read_parameters,
    reads_too_much,
    write_parameters,
)
from pipelines.search.indexing.recall import K, Measurement, Probe, make_probes, measure
from pipelines.search.indexing.tuning import Point, Tuned, tune
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_dataset
from pipelines.tables.provenance import Provenance

if TYPE_CHECKING:
    import lance

# The latency of exact search is the median of this many scans.
_EXACT_TRIES = 5


class RecallError(RuntimeError):
    """No parameters reach the requested recall; the index was not published."""


@dataclass(frozen=True, kw_only=True)
class BuiltIndex:
    """An index of a column.

    Attributes:
        column: the column.
        type: the index type; `exact` means no index.
        why: why this type was chosen.
        parameters: query parameters of a vector index; None for other indexes.
        ms: median milliseconds per query with these parameters.
        curve: all parameters that were tried, with recall@10 and latency.
        exact_ms: median milliseconds of an exact search; None if it was not measured.
    """

    column: str
    type: str
    why: str
    parameters: QueryParameters | None = None
    ms: float | None = None
    curve: tuple[Point, ...] = ()
    exact_ms: float | None = None


def build_vector_index(
    table: TableRef, column: str, target_recall: float, memory_bytes: int, workers: int = 1
) -> BuiltIndex:
    """Index a vector column, and store the fastest parameters that keep the promised recall.

    Recall is measured for every kind of query to expect: vectors of the column itself, and of columns that share its
    space. An IVF_FLAT index that reads much per query is replaced by IVF_RQ if that is faster. While the new index is
    built, an existing one answers, with parameters that are slow but safe for both.

    Args:
        table: the table.
        column: a vector column.
        target_recall: promised recall@10 against exact search.
        memory_bytes: memory of this machine, in bytes.
        workers: above 1, IVF_RQ is built by this many tasks on Ray.

    Raises:
        RecallError: the target is not reached; the index is dropped, and search stays exact.
    """
    dataset = open_dataset(table)
    rows = dataset.count_rows(f"{column} IS NOT NULL")
    dim = dataset.schema.field(column).type.list_size
    plan = plan_index(rows, dim, memory_bytes)
    stored = read_parameters(dataset, column)
    if plan.type == "exact":
        _drop(dataset, column)
        return BuiltIndex(column=column, type="exact", why=plan.reason)
    probes = make_probes(dataset, column, Provenance.from_schema(dataset.schema, str(table)))
    exact_ms = measure(dataset, column, probes[:_EXACT_TRIES], {"use_index": False}).ms
    missed: list[str] = []
    curve: tuple[Point, ...] = ()
    plans, heavy_ms = (plan, *fallback_plans(plan, rows)), math.inf
    for tried in plans:
        if stored is not None:
            write_parameters(open_dataset(table), column, _while_rebuilding(stored, tried))
        _create(table, column, tried, workers)
        tuned = _tune(table, column, candidate_lines(tried), probes, target_recall)
        curve = (*curve, *tuned.points)
        if tuned.parameters is not None and tried is plan and reads_too_much(tuned.parameters, plan, rows, dim):
            missed.append(f"{tried.type} would read much ({tuned.parameters}; {tuned.ms:.1f} ms)")
            heavy_ms = tuned.ms or math.inf
            continue
        if tuned.parameters is not None and tried is not plans[-1] and (tuned.ms or 0.0) > heavy_ms:
            missed.append(f"{tried.type} is slower ({tuned.parameters}; {tuned.ms:.1f} ms)")
            continue
        if tuned.parameters is not None:
            kept = replace(tuned.parameters, target=target_recall, rows=rows)
            write_parameters(open_dataset(table), column, kept)
            why = "; ".join([*missed, tried.reason])
            return BuiltIndex(
                column=column,
                type=tried.type,
                why=why,
                parameters=kept,
                ms=tuned.ms,
                curve=curve,
                exact_ms=exact_ms,
            )
        best = tuned.best
        reached = f"{best.recall:.3f} at most ({best.parameters}; {best.ms:.1f} ms)"
        missed.append(f"{tried.type} on {column} reaches recall@10 {reached}")
    _drop(open_dataset(table), column)
    floor = int(max(point.recall for point in curve) * 100) / 100
    raise RecallError(
        f"table {table}: {', '.join(missed)}, not {target_recall}; it is not published, and search stays exact, which "
        f"reaches it at {exact_ms:.1f} ms per query; use --target-recall {floor:.2f} to get an index"
    )


def _while_rebuilding(stored: QueryParameters, plan: IndexPlan) -> QueryParameters:
    """Slow parameters that are safe for the old index and, once it is replaced, for the new one until it is tuned."""
    tries = [stored, *(candidate for line in candidate_lines(plan) for candidate in line)]
    return replace(
        stored,
        nprobes=max(one.nprobes for one in tries),
        refine_factor=max(one.refine_factor for one in tries),
        ef=max((one.ef for one in tries if one.ef is not None), default=None),
    )


def _create(table: TableRef, column: str, plan: IndexPlan, workers: int) -> None:
    if workers > 1 and plan.type == "IVF_RQ":
        create_on_ray(table, column, plan, workers)
        return
    open_dataset(table).create_index(
        column, index_type=plan.type, metric="cosine", num_partitions=plan.partitions, replace=True
    )


def _tune(
    table: TableRef, column: str, lines: list[list[QueryParameters]], probes: list[Probe], target_recall: float
) -> Tuned:
    dataset = open_dataset(table)

    def try_out(parameters: QueryParameters, asked: list[Probe]) -> Measurement:
        return measure(dataset, column, asked, parameters.nearest(K))

    return tune(lines, probes, target_recall, try_out)


def recheck_vector_index(table: TableRef, column: str) -> QueryParameters | None:
    """Measure a published index again after rows were added, and tune it again if it no longer keeps its promise.

    Returns:
        The parameters now stored. None if no parameters keep the promise any more; the stored ones are then deleted,
        and the column is searched exactly until `isthmus index` rebuilds the index.

    Raises:
        ValueError: the column has no published index.
    """
    dataset = open_dataset(table)
    stored = read_parameters(dataset, column)
    if stored is None:
        raise ValueError(f"table {table}: {column} has no published index; run `isthmus index`")
    rows = dataset.count_rows(f"{column} IS NOT NULL")
    probes = make_probes(dataset, column, Provenance.from_schema(dataset.schema, str(table)))
    now = measure(dataset, column, probes, stored.nearest(K))
    if now.recall >= stored.target:
        kept = replace(stored, recall=round(now.recall, 4), rows=rows)
        write_parameters(dataset, column, kept)
        return kept
    partitions = max(stored.nprobes, _partitions(dataset, column))
    lines = candidate_lines(IndexPlan(type=stored.type, partitions=partitions, reason=""))
    found = _tune(table, column, lines, probes, stored.target).parameters
    if found is None:
        forget_parameters(dataset, column)
        return None
    kept = replace(found, target=stored.target, rows=rows)
    write_parameters(dataset, column, kept)
    return kept


def _partitions(dataset: lance.LanceDataset, column: str) -> int:
    (name,) = (index.name for index in dataset.describe_indices() if list(index.field_names) == [column])
    parts = dataset.index_statistics(name)["indices"]
    return max(int(part.get("num_partitions", 1)) for part in parts)


def build_text_index(table: TableRef) -> BuiltIndex | None:
    """A full-text index on the captions. ICU finds the words of Chinese, which is written without spaces."""
    dataset = open_dataset(table)
    if dataset.count_rows() == 0:
        return None
    dataset.create_scalar_index(
        CAPTION,
        "INVERTED",
        replace=True,
        base_tokenizer="icu",
        language="English",
        stem=True,
        remove_stop_words=False,
        lower_case=True,
        ascii_folding=True,
        with_position=False,
    )
    return BuiltIndex(column=CAPTION, type="full text (icu)", why="words in Chinese and English")


def build_key_indexes(table: TableRef) -> list[BuiltIndex]:
    """B-tree indexes on the row and item ids."""
    built = []
    for column in (ROW_ID, ITEM_ID):
        open_dataset(table).create_scalar_index(column, "BTREE", replace=True)
        built.append(BuiltIndex(column=column, type="B-tree", why="look-up by id"))
    return built


def index_table(table: TableRef, target_recall: float, memory_bytes: int, workers: int = 1) -> list[BuiltIndex]:
    """Build all indexes of a table. A second run rebuilds them over all rows.

    Raises:
        FileNotFoundError: there is no such table.
        RecallError: a vector index misses its target; see `build_vector_index`.
    """
    provenance = Provenance.from_schema(open_dataset(table).schema, str(table))
    text = build_text_index(table)
    built = [*build_key_indexes(table), *([text] if text else [])]
    return built + [
        build_vector_index(table, column, target_recall, memory_bytes, workers) for column in provenance.spaces()
    ]


def _drop(dataset: lance.LanceDataset, column: str) -> None:
    """Drop an index and its stored parameters, if they exist."""
    for index in dataset.describe_indices():
        if list(index.field_names) == [column]:
            dataset.drop_index(index.name)
    forget_parameters(dataset, column)
