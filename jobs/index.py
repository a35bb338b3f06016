"""`isthmus index`: build the vector, full-text and key indexes of a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter
from pydantic import Field

from jobs.config import TableConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipelines.search.indexing.build import BuiltIndex


@Parameter(name="*")
class IndexConfig(TableConfig):
    """Config of `isthmus index`."""

    target_recall: float = Field(
        default=0.95, gt=0, le=1, description="Least recall@10 of a vector index, compared with exact search."
    )
    workers: int = Field(
        default=1,
        ge=1,
        description="Number of Ray tasks that build the index of a large table; 1: build it in this process.",
    )
    plot: Path | None = Field(default=None, description="Plot recall against latency to this file (png, svg, …).")


@dataclass(frozen=True, kw_only=True)
class IndexReport:
    """The indexes of a table, with the measured recall of each vector index."""

    table: str
    indexes: list[BuiltIndex]
    plot: str | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        rows = [{**asdict(index), "recall_at_10": _recall(index)} for index in self.indexes]
        return {"table": self.table, "indexes": rows, "plot": self.plot}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        from jobs.display import rows_table

        rows = [
            {
                "column": index.column,
                "index": index.type,
                "recall@10": _recall(index),
                "queried with": str(index.parameters) if index.parameters else None,
                "ms": index.ms,
                "exact ms": index.exact_ms,
                "why": index.why,
            }
            for index in self.indexes
        ]
        return Group(
            Text(f"table: {self.table}"), rows_table(rows), *([Text(f"plot: {self.plot}")] if self.plot else [])
        )


def _recall(index: BuiltIndex) -> float | None:
    if index.type == "exact":
        return 1.0
    return index.parameters.recall if index.parameters else None


def run(config: IndexConfig) -> IndexReport:
    """Build all indexes of a table. A second run rebuilds them over all rows.

    Raises:
        FileNotFoundError: there is no such table.
        RecallError: a vector index does not reach the target recall. It is not published.
        ValueError: the type of the plot's file is unknown.
    """
    import psutil

    from pipelines.pages.plots import check_plot
    from pipelines.search.indexing.build import index_table
    from pipelines.search.indexing.index_plot import plot

    if config.plot is not None:
        check_plot(config.plot)
    table = config.ref(config.table)
    built = index_table(table, config.target_recall, psutil.virtual_memory().total, config.workers)
    drawn = config.plot if any(index.curve for index in built) else None
    if drawn is not None:
        plot(built, drawn)
    return IndexReport(table=str(table), indexes=built, plot=str(drawn) if drawn else None)
