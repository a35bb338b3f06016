"""`isthmus index`: vector, full-text and key indexes of a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cyclopts import Parameter
from pydantic import Field

from jobs.config import JobConfig


@Parameter(name="*")
class IndexConfig(JobConfig):
    """Config of `isthmus index`."""

    table: str = Field(description="FOLDER/NAME or s3://BUCKET/FOLDER/NAME.")
    target_recall: float = Field(
        default=0.95, gt=0, le=1, description="recall@10 against exact search that a vector index must reach."
    )
    storage_options: dict[str, str] = Field(default_factory=dict, repr=False, description="How to reach the store.")


@dataclass(frozen=True, kw_only=True)
class IndexReport:
    """The indexes of a table, with their measured recall."""

    table: str
    indexes: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def run(config: IndexConfig) -> IndexReport:
    """Build all indexes of a table; run again, they are built anew over all rows.

    Raises:
        FileNotFoundError: there is no such table.
        RecallError: a vector index misses the target; it is not published.
    """
    import psutil

    from pipelines.retrieval.index import index_table
    from pipelines.storage import Storage, TableRef

    table = TableRef.parse(config.table, Storage.from_options(config.storage_options))
    built = index_table(table, config.target_recall, psutil.virtual_memory().total)
    return IndexReport(table=str(table), indexes=built)
