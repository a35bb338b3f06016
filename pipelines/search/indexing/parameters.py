"""Which index a vector column gets, and with which parameters it is queried."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import lance

# IVF_HNSW_SQ is no longer built; tables that earlier versions indexed are still queried through it.
IndexType = Literal["exact", "IVF_FLAT", "IVF_RQ", "IVF_HNSW_SQ"]
PARAMETERS_KEY = "isthmus.index."
# Below this an exact scan takes milliseconds.
_EXACT_BELOW_ROWS = 10_000
# IVF_FLAT stores the vectors a second time and works best in memory: they may take up to 1/8 of it.
_FLAT_MEMORY_SHARE = 8
# Comparing this many bytes of whole vectors takes as long as refining candidates found by codes.
_FLAT_BYTES_A_QUERY = 16 << 20
_MOST_PARTITIONS = 65_536
# (refine factor, list size) of HNSW, the fastest first.
_HNSW_TRIES = ((2, 64), (4, 200), (10, 600), (20, 1_500))
_REFINE_FACTORS = (2, 5, 20, 60)
_PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)
# Parameters are tuned for ten rows. More rows lie in more partitions; beyond 100, Lance may search even more of them.
_TUNED_K, _MOST_SCALED_K = 10, 100


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """The vector index that a column gets.

    Attributes:
        type: the index type; `exact` means no index.
        partitions: number of IVF partitions.
        reason: why this type, for the report.
    """

    type: IndexType
    partitions: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class QueryParameters:
    """How an index is queried. Stored in the table's config; `search` uses these values by default.

    Attributes:
        type: the index type.
        nprobes: number of partitions searched; more if a filter leaves fewer than k rows in them.
        refine_factor: number of candidates reranked exactly, as a multiple of k; 0 if the index itself compares
            exactly.
        ef: list size of HNSW; None for other types.
        recall: recall@10 against exact search at these parameters, on queries that were not used to choose them.
        target: the promised recall.
        rows: number of vectors in the column when the recall was measured.
        effort: Lance's search effort. 0 keeps to `nprobes`. None, in tables indexed by earlier versions, lets Lance
            search many more partitions.
    """

    type: IndexType
    nprobes: int
    refine_factor: int
    ef: int | None
    recall: float
    target: float = 0.0
    rows: int = 0
    effort: float | None = None

    def nearest(self, k: int, *, filtered: bool = False) -> dict[str, Any]:
        """The parameters as Lance's `nearest` takes them.

        Args:
            k: number of rows requested. HNSW's list must hold all candidates.
            filtered: whether only rows that meet a condition count. The nearest of them lie in more partitions than
                were tuned for all rows, so Lance may search more.
        """
        ef = max(self.ef, k * self.refine_factor) if self.ef is not None else None
        values: dict[str, Any] = {
            "minimum_nprobes": self.nprobes,
            "refine_factor": self.refine_factor or None,
            "ef": ef,
        }
        if self.effort is not None:
            values["minimum_nprobes"] = self.nprobes * math.ceil(k / _TUNED_K)
            values["search_effort"] = None if filtered or k > _MOST_SCALED_K else self.effort
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        refine = f", refine {self.refine_factor}" if self.refine_factor else ""
        ef = f", ef {self.ef}" if self.ef is not None else ""
        return f"nprobes {self.nprobes}{refine}{ef}"


def plan_index(rows: int, dim: int, memory_bytes: int) -> IndexPlan:
    """The index type and its number of partitions, by table size and memory.

    Args:
        rows: number of vectors in the column.
        dim: their number of dimensions.
        memory_bytes: memory of this machine, in bytes.
    """
    if rows < _EXACT_BELOW_ROWS:
        return IndexPlan(type="exact", partitions=0, reason=f"{rows:,} vectors: an exact scan is fast and right")
    if rows * dim * 4 * _FLAT_MEMORY_SHARE < memory_bytes:
        return _ivf("IVF_FLAT", rows, f"{rows:,} vectors fit in memory")
    return _ivf("IVF_RQ", rows, f"{rows:,} vectors")


def fallback_plans(plan: IndexPlan, rows: int) -> list[IndexPlan]:
    """Plans to try if `plan` misses its target or reads too many vectors per query: codes are smaller."""
    if plan.type != "IVF_FLAT":
        return []
    return [
        _ivf("IVF_RQ", rows, f"{rows:,} vectors, in codes"),
        replace(plan, reason=f"{plan.reason}, codes do no better"),
    ]


def reads_too_much(parameters: QueryParameters, plan: IndexPlan, rows: int, dim: int) -> bool:
    """Whether a query reads so many whole vectors that codes are likely faster."""
    return plan.type == "IVF_FLAT" and parameters.nprobes * rows / plan.partitions * dim * 4 > _FLAT_BYTES_A_QUERY


def _ivf(kind: IndexType, rows: int, reason: str) -> IndexPlan:
    return IndexPlan(type=kind, partitions=max(1, min(_MOST_PARTITIONS, round(math.sqrt(rows)))), reason=reason)


def candidate_lines(plan: IndexPlan) -> list[list[QueryParameters]]:
    """Query parameters to try, in lines. Along a line they get slower and find more."""
    if plan.type == "IVF_HNSW_SQ":
        return [[_candidate(plan, plan.partitions, refine, ef) for refine, ef in _HNSW_TRIES]]
    probes = [n for n in _PROBES if n < plan.partitions] + [plan.partitions]
    factors = (0,) if plan.type == "IVF_FLAT" else _REFINE_FACTORS
    return [[_candidate(plan, n, refine, None) for n in probes] for refine in factors]


def _candidate(plan: IndexPlan, nprobes: int, refine: int, ef: int | None) -> QueryParameters:
    return QueryParameters(type=plan.type, nprobes=nprobes, refine_factor=refine, ef=ef, recall=0.0, effort=0.0)


def read_parameters(dataset: lance.LanceDataset, column: str) -> QueryParameters | None:
    """The stored query parameters of a vector column; None if it has no index."""
    raw = dataset.config().get(PARAMETERS_KEY + column)
    return QueryParameters(**json.loads(raw)) if raw else None


def published_columns(dataset: lance.LanceDataset) -> list[str]:
    """The vector columns with a published index; empty for a table without vectors of isthmus."""
    return sorted(key.removeprefix(PARAMETERS_KEY) for key in dataset.config() if key.startswith(PARAMETERS_KEY))


def write_parameters(dataset: lance.LanceDataset, column: str, parameters: QueryParameters) -> None:
    """Store a column's query parameters with the table."""
    dataset.update_config({PARAMETERS_KEY + column: json.dumps(asdict(parameters))})


def forget_parameters(dataset: lance.LanceDataset, column: str) -> None:
    """Delete a column's query parameters, if any. The column is then searched exactly."""
    if PARAMETERS_KEY + column in dataset.config():
        dataset.delete_config_keys([PARAMETERS_KEY + column])
