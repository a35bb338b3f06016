"""`isthmus rejects`: the rows that could not be embedded, counted by reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cyclopts import Parameter
from pydantic import Field

from jobs.config import CorpusStoreConfig, TableConfig


@Parameter(name="*")
class RejectsConfig(TableConfig, CorpusStoreConfig):
    """Config of `isthmus rejects`."""

    reason: str | None = Field(default=None, description="List rows of this reason only.")
    limit: int = Field(default=20, ge=0, description="The most rows to list; the counts are of all.")
    html: Path | None = Field(
        default=None, description="Write a self-contained page: so many rows of each reason, with their pictures."
    )


@dataclass(frozen=True, kw_only=True)
class RejectsReport:
    """Counts of all rejects by reason, some rows, and the page's path if one was written."""

    by_reason: dict[str, int]
    rows: list[dict[str, Any]]
    page: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def run(config: RejectsConfig) -> RejectsReport:
    """List the rejects of a table.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the reason is not one of the closed set.
    """
    from pipelines.rows.contract import Reason
    from pipelines.tables.opening import open_dataset
    from pipelines.tables.rejects import RejectsSummary, read_rejects

    if config.reason is not None and config.reason not in set(Reason):
        raise ValueError(f"reason {config.reason!r}: not known; the reasons are {', '.join(Reason)}")
    table = config.ref(config.table)
    open_dataset(table)
    summary = read_rejects(table, reason=config.reason, limit=config.limit)
    page = None
    if config.html is not None:
        from pipelines.pages.rejects import write_rejects_page

        reasons = [config.reason] if config.reason else list(summary.by_reason)
        each = [read_rejects(table, reason=reason, limit=config.limit).rows for reason in reasons]
        shown = RejectsSummary(by_reason=summary.by_reason, rows=[row for rows in each for row in rows])
        storage = config.corpus_storage()
        page = str(write_rejects_page(config.html, table.name, shown, storage))
    return RejectsReport(by_reason=summary.by_reason, rows=summary.rows, page=page)


@Parameter(name="*")
class RetryConfig(TableConfig, CorpusStoreConfig):
    """Config of `isthmus rejects retry`."""

    reason: list[str] = Field(min_length=1, description="Reasons whose rows are tried again, once or several times.")
    corpus: str | None = Field(default=None, description="Only of this corpus; default: of all that filled the table.")


@dataclass(frozen=True, kw_only=True)
class RetryReport:
    """What a retry did: rows tried, written, and rejected again by reason; and the rejects that are left."""

    rows_in: int
    written: int
    rejected: dict[str, int]
    by_reason: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def retry(config: RetryConfig, progress: Callable[[int, int | None], None] | None = None) -> RetryReport:
    """Try the rows again that were rejected for some reasons, with the options of the jobs that rejected them.

    Raises:
        FileNotFoundError: there is no such table, or its corpus is gone.
        ValueError: a reason that is not of the closed set, or a corpus that filled nothing.
        OSError: a store fails; the table is as of its last commit.
    """
    from collections import Counter

    from jobs.embed import EmbedConfig, run_with
    from pipelines.rows.contract import Reason
    from pipelines.store.storage import absolute
    from pipelines.tables.jobs import remembered_jobs
    from pipelines.tables.rejects import read_rejects

    if unknown := sorted(set(config.reason) - set(Reason)):
        raise ValueError(f"reason {unknown[0]!r}: not known; the reasons are {', '.join(Reason)}")
    table = config.ref(config.table)
    jobs = remembered_jobs(table)
    chosen = [job for job in jobs if config.corpus is None or job["corpus"] == absolute(config.corpus)]
    if not chosen:
        there = ", ".join(job["corpus"] for job in jobs) or "none that it remembers; run `isthmus embed` once more"
        raise ValueError(f"corpus {config.corpus}: not one of those that filled table {table}: {there}")
    stores = {"storage_options": config.storage_options, "corpus_storage_options": config.corpus_storage_options}
    rows_in, written, rejected = 0, 0, Counter[str]()
    for job in chosen:
        report = run_with(
            EmbedConfig(**{**job, "table": config.table, **stores}), {"retry": frozenset(config.reason)}, progress
        )
        rows_in, written = rows_in + report.rows_in, written + report.written
        rejected.update(report.rejected)
    left = read_rejects(table, limit=0).by_reason
    return RetryReport(rows_in=rows_in, written=written, rejected=dict(rejected), by_reason=left)
