"""Indexes: vectors (cosine), full text in Chinese and English, and keys; with the recall that they give, measured."""

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

# So many exact scans say how long one takes.
_EXACT_TRIES = 5


class RecallError(RuntimeError):
    """No parameters reach the recall asked for; the index was not published."""


@dataclass(frozen=True, kw_only=True)
class BuiltIndex:
    """An index of a column.

    Attributes:
        column: of the table.
        type: of the index; `exact` is none.
        why: this type.
        parameters: by which vectors are searched, None for other indexes.
        ms: median milliseconds of a query with them.
        curve: every try of parameters, its recall@10 and its latency.
        exact_ms: median milliseconds of an exact search, None where nothing was measured.
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

    Recall is measured for queries of every kind that will ask: vectors of the column itself, and of columns that share
    its space. IVF_FLAT that reads much a query gives way to IVF_RQ if that is faster. An index that is there answers,
    with parameters that are slow and sure, until the new one takes its place.

    Args:
        table: the table.
        column: of vectors.
        target_recall: recall@10 against exact search.
        memory_bytes: what this machine has.
        workers: above 1, IVF_RQ is built by so many tasks on Ray.

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
        f"reaches it at {exact_ms:.1f} ms a query; ask for --target-recall {floor:.2f} to have an index"
    )


def _while_rebuilding(stored: QueryParameters, plan: IndexPlan) -> QueryParameters:
    """Slow parameters that are right for the old index and, once it is replaced, for the one that is not tuned yet."""
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
    """Measure a published index again, as rows were added, and tune it anew where it no longer keeps its promise.

    Returns:
        The parameters now stored, or None where no parameters keep the promise any more: they are then forgotten, and
        the column is searched exactly until `isthmus index` builds the index anew.

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
    """Full text on the captions; ICU finds the words of Chinese, which is written without spaces."""
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
    """B-trees on the row and item ids."""
    built = []
    for column in (ROW_ID, ITEM_ID):
        open_dataset(table).create_scalar_index(column, "BTREE", replace=True)
        built.append(BuiltIndex(column=column, type="B-tree", why="look-up by id"))
    return built


def index_table(table: TableRef, target_recall: float, memory_bytes: int, workers: int = 1) -> list[BuiltIndex]:
    """All indexes of a table; run again, it builds them anew over all rows.

    Raises:
        FileNotFoundError: there is no such table.
        RecallError: see `build_vector_index`.
    """
    provenance = Provenance.from_schema(open_dataset(table).schema, str(table))
    text = build_text_index(table)
    built = [*build_key_indexes(table), *([text] if text else [])]
    return built + [
        build_vector_index(table, column, target_recall, memory_bytes, workers) for column in provenance.spaces()
    ]


def _drop(dataset: lance.LanceDataset, column: str) -> None:
    """Take an index and its stored parameters away, if they are there."""
    for index in dataset.describe_indices():
        if list(index.field_names) == [column]:
            dataset.drop_index(index.name)
    forget_parameters(dataset, column)
