"""`isthmus rejects`: the rows that could not be embedded, counted by reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cyclopts import Parameter
from pydantic import Field

from jobs.config import JobConfig


@Parameter(name="*")
class RejectsConfig(JobConfig):
    """Config of `isthmus rejects`."""

    table: str = Field(description="FOLDER/NAME or s3://BUCKET/FOLDER/NAME.")
    reason: str | None = Field(default=None, description="List rows of this reason only.")
    limit: int = Field(default=20, ge=0, description="The most rows to list; the counts are of all.")
    storage_options: dict[str, str] = Field(default_factory=dict, repr=False, description="How to reach the store.")


@dataclass(frozen=True, kw_only=True)
class RejectsReport:
    """Counts of all rejects by reason, and some rows."""

    by_reason: dict[str, int]
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def run(config: RejectsConfig) -> RejectsReport:
    """List the rejects of a table.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the reason is not one of the closed set.
    """
    from pipelines.contract import Reason
    from pipelines.sink.rejects import read_rejects
    from pipelines.sink.tables import open_dataset
    from pipelines.storage import Storage, TableRef

    if config.reason is not None and config.reason not in set(Reason):
        raise ValueError(f"reason {config.reason!r}: not known; the reasons are {', '.join(Reason)}")
    table = TableRef.parse(config.table, Storage.from_options(config.storage_options))
    open_dataset(table)
    summary = read_rejects(table, reason=config.reason, limit=config.limit)
    return RejectsReport(by_reason=summary.by_reason, rows=summary.rows)
