"""Indexes: vectors (cosine), full text in Chinese and English, and keys; with the recall that they give, measured."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pipelines.contract import CAPTION, ITEM_ID, ROW_ID
from pipelines.provenance import Provenance
from pipelines.retrieval.recall import Probe, make_probes, measure
from pipelines.sink.tables import open_dataset
from pipelines.storage import TableRef

if TYPE_CHECKING:
    import lance

IndexType = Literal["exact", "IVF_HNSW_SQ", "IVF_RQ"]
_PARAMETERS_KEY = "isthmus.index."
# Below this an exact scan takes milliseconds, and is right.
_EXACT_BELOW_ROWS = 10_000
# HNSW gives the best latency, but builds some ten times slower than IVF_RQ and wants the vectors in memory.
_HNSW_BELOW_ROWS = 200_000
_HNSW_MEMORY_FACTOR = 4
_REFINE = 20


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """Which vector index a column gets.

    Attributes:
        type: `exact` is no index.
        partitions: IVF partitions.
        reason: why, for the report.
    """

    type: IndexType
    partitions: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class QueryParameters:
    """How an index is queried. Kept in the table's config; `search` uses them by default.

    Attributes:
        type: of the index.
        nprobes: partitions searched; more where a filter leaves fewer than k rows in them.
        refine_factor: candidates re-ranked exactly, as a multiple of k.
        ef: HNSW's list size, None for other types.
        recall: recall@10 against exact search at these parameters.
    """

    type: IndexType
    nprobes: int
    refine_factor: int
    ef: int | None
    recall: float

    def nearest(self) -> dict[str, Any]:
        """As Lance's `nearest` takes them."""
        values = {"minimum_nprobes": self.nprobes, "refine_factor": self.refine_factor, "ef": self.ef}
        return {name: value for name, value in values.items() if value is not None}


class RecallError(RuntimeError):
    """No parameters reach the recall asked for; the index was not published."""


def plan_index(rows: int, dim: int, memory_bytes: int) -> IndexPlan:
    """The index type and its partitions, by size and memory.

    Args:
        rows: vectors in the column.
        dim: their length.
        memory_bytes: what this machine has.
    """
    if rows < _EXACT_BELOW_ROWS:
        return IndexPlan(type="exact", partitions=0, reason=f"{rows:,} vectors: an exact scan is fast and right")
    need = rows * dim * 4 * _HNSW_MEMORY_FACTOR
    if rows < _HNSW_BELOW_ROWS and need < memory_bytes:
        return IndexPlan(type="IVF_HNSW_SQ", partitions=1, reason=f"{rows:,} vectors fit in memory")
    return _ivf_rq(rows)


def _ivf_rq(rows: int) -> IndexPlan:
    return IndexPlan(type="IVF_RQ", partitions=max(1, min(65_536, round(math.sqrt(rows)))), reason=f"{rows:,} vectors")


def candidate_parameters(plan: IndexPlan) -> list[dict[str, int | None]]:
    """Query parameters to try, the fastest first."""
    if plan.type == "IVF_HNSW_SQ":
        return [{"nprobes": plan.partitions, "refine_factor": r, "ef": ef} for r, ef in ((2, 64), (4, 200), (10, 600))]
    probes = [n for n in (4, 8, 16, 32, 64, 128, 256, 512) if n < plan.partitions] + [plan.partitions]
    return [{"nprobes": n, "refine_factor": _REFINE, "ef": None} for n in probes]


def read_parameters(dataset: lance.LanceDataset, column: str) -> QueryParameters | None:
    """The stored query parameters of a vector column, None where it has no index."""
    raw = dataset.config().get(_PARAMETERS_KEY + column)
    return QueryParameters(**json.loads(raw)) if raw else None


def build_vector_index(table: TableRef, column: str, target_recall: float, memory_bytes: int) -> dict[str, Any]:
    """Index a vector column, measure its recall, and store the fastest parameters that reach the target.

    HNSW that misses (it does among many equal vectors) gives way to IVF_RQ.

    Returns:
        A row for the report.

    Raises:
        RecallError: the target is not reached; the index is dropped, and search stays exact.
    """
    dataset = open_dataset(table)
    rows = dataset.count_rows(f"{column} IS NOT NULL")
    plan = plan_index(rows, dataset.schema.field(column).type.list_size, memory_bytes)
    _drop(dataset, column)
    if plan.type == "exact":
        return {"column": column, "type": "exact", "recall_at_10": 1.0, "why": plan.reason}
    probes = make_probes(dataset, column, Provenance.from_schema(dataset.schema, str(table)))
    missed: list[str] = []
    for tried in (plan, *fallback_plans(plan, rows)):
        parameters, best = _build(table, column, tried, probes, target_recall)
        if parameters is not None:
            open_dataset(table).update_config({_PARAMETERS_KEY + column: json.dumps(asdict(parameters))})
            why = "; ".join([*missed, tried.reason])
            return {"column": column, "type": tried.type, "recall_at_10": parameters.recall, "why": why}
        missed.append(f"{tried.type} on {column} reaches recall@10 {best:.3f}")
    _drop(open_dataset(table), column)
    raise RecallError(
        f"table {table}: {', '.join(missed)}, not {target_recall}; it is not "
        "published, and search stays exact; ask for a lower --target-recall"
    )


def fallback_plans(plan: IndexPlan, rows: int) -> list[IndexPlan]:
    """What to try where `plan` misses its target."""
    if plan.type != "IVF_HNSW_SQ":
        return []
    return [_ivf_rq(rows)]


def _build(
    table: TableRef, column: str, plan: IndexPlan, probes: list[Probe], target_recall: float
) -> tuple[QueryParameters | None, float]:
    """Build the index; its fastest parameters that reach the target, if any do, and the best recall seen."""
    open_dataset(table).create_index(
        column, index_type=plan.type, metric="cosine", num_partitions=plan.partitions, replace=True
    )
    dataset = open_dataset(table)
    best = 0.0
    for candidate in candidate_parameters(plan):
        parameters = QueryParameters(type=plan.type, recall=0.0, **candidate)  # type: ignore[arg-type]
        recall = measure(dataset, column, probes, parameters.nearest())
        if recall >= target_recall:
            return replace(parameters, recall=round(recall, 4)), recall
        best = max(best, recall)
    return None, best


def build_text_index(table: TableRef) -> dict[str, Any] | None:
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
    return {"column": CAPTION, "type": "full text (icu)", "recall_at_10": None, "why": "words in Chinese and English"}


def build_key_indexes(table: TableRef) -> list[dict[str, Any]]:
    """B-trees on the row and item ids."""
    built = []
    for column in (ROW_ID, ITEM_ID):
        open_dataset(table).create_scalar_index(column, "BTREE", replace=True)
        built.append({"column": column, "type": "B-tree", "recall_at_10": None, "why": "look-up by id"})
    return built


def index_table(table: TableRef, target_recall: float, memory_bytes: int) -> list[dict[str, Any]]:
    """All indexes of a table; run again, it builds them anew over all rows.

    Raises:
        FileNotFoundError: there is no such table.
        RecallError: see `build_vector_index`.
    """
    provenance = Provenance.from_schema(open_dataset(table).schema, str(table))
    text = build_text_index(table)
    built = [*build_key_indexes(table), *([text] if text else [])]
    return built + [
        build_vector_index(table, column, target_recall, memory_bytes) for column in provenance.vector_columns()
    ]


def _drop(dataset: lance.LanceDataset, column: str) -> None:
    """Take an index and its stored parameters away, if they are there."""
    for index in dataset.describe_indices():
        if list(index.field_names) == [column]:
            dataset.drop_index(index.name)
    if _PARAMETERS_KEY + column in dataset.config():
        dataset.delete_config_keys([_PARAMETERS_KEY + column])
