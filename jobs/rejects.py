"""`isthmus rejects`: list the rows that could not be embedded, or retry them."""

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

    reason: str | None = Field(
        default=None, description="List only rows that were rejected for this reason; default: all reasons."
    )
    limit: int = Field(default=20, ge=0, description="The most rows to list. The counts always include all rows.")
    html: Path | None = Field(
        default=None,
        description="Write up to --limit rows of each reason, with "
        "their pictures, to this file, as a self-contained HTML page.",
    )


@dataclass(frozen=True, kw_only=True)
class RejectsReport:
    """The number of rejects by reason, up to `limit` rejected rows, and the path of the page if one was written."""

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
        ValueError: there is no such reason.
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
        storage = config.picture_storage(table)
        page = str(write_rejects_page(config.html, table.name, shown, storage))
    return RejectsReport(by_reason=summary.by_reason, rows=summary.rows, page=page)


@Parameter(name="*")
class RetryConfig(TableConfig, CorpusStoreConfig):
    """Config of `isthmus rejects retry`."""

    reason: list[str] = Field(min_length=1, description="Reason whose rows are retried; repeat it for several reasons.")
    corpus: str | None = Field(
        default=None, description="Retry only rows of this corpus; default: of every corpus that filled the table."
    )


@dataclass(frozen=True, kw_only=True)
class RetryReport:
    """What a retry did.

    Attributes:
        rows_in: rows that were retried.
        written: rows that are now in the table.
        rejected: rows that were rejected again, by reason.
        by_reason: all remaining rejects of the table, by reason.
    """

    rows_in: int
    written: int
    rejected: dict[str, int]
    by_reason: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def retry(config: RetryConfig, progress: Callable[[int, int | None], None] | None = None) -> RetryReport:
    """Retry the rows that were rejected for the given reasons, with the options of the jobs that rejected them.

    Args:
        config: the job.
        progress: called with (rows settled so far, total rows or None if unknown).

    Raises:
        FileNotFoundError: there is no such table, or its corpus no longer exists.
        ValueError: there is no such reason, or the corpus did not fill the table.
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
