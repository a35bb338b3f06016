"""`isthmus maintain`: merge small files, complete the indexes, remove old versions and orphaned files."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter
from pydantic import Field

from jobs.config import TableConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipelines.ingest.maintenance.maintain import TableUpkeep
    from pipelines.store.storage import TableRef

_DEFAULT_KEEP_DAYS = 7.0
_DAY_S = 86_400.0


@Parameter(name="*")
class MaintainConfig(TableConfig):
    """Config of `isthmus maintain`."""

    keep_versions: int | None = Field(
        default=None, ge=1, description="Keep this many of the newest versions; default: --keep-days alone decides."
    )
    keep_days: float | None = Field(
        default=None,
        ge=0,
        description="Keep versions younger than this many days; default: 7 if --keep-versions "
        "is not given. A version stays if either rule keeps it, or if it has a tag. A training "
        "job reads the version that it started on: keep versions for longer than it runs.",
    )
    min_age_hours: float = Field(
        default=24.0, ge=12.0, description="Remove orphaned files only if they are at least this many hours old."
    )
    wait_s: float = Field(
        default=0.0, ge=0, description="Seconds to wait while another job writes to the table, before giving up."
    )
    dry_run: bool = Field(default=False, description="Report what would be done, and change nothing.")


@dataclass(frozen=True, kw_only=True)
class MaintainReport:
    """What was done to a table and its siblings.

    Attributes:
        table: the table's URI.
        dry_run: whether nothing was changed.
        seconds: wall time of the job.
        tables: the table itself, then its siblings.
        recalls: indexed vector column → its recall@10, measured after maintenance. None if no parameters reach the
            target recall any more; the column is then searched exactly until `isthmus index` runs again.
    """

    table: str
    dry_run: bool
    seconds: float
    tables: tuple[TableUpkeep, ...]
    recalls: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)

    def __rich__(self) -> RenderableType:
        """The summary as one line, for the log of a cron job."""
        from rich.text import Text

        return Text(self.summary())

    def summary(self) -> str:
        """What was done, in one line."""
        from jobs.display import size_text

        files = sum(t.before.files for t in self.tables)
        size = sum(t.before.bytes for t in self.tables)
        now = [t.after for t in self.tables if t.after is not None]
        after = (f" → {sum(f.files for f in now):,}", f" → {size_text(sum(f.bytes for f in now))}") if now else ("", "")
        main = self.tables[0]
        lacking = sum(index.unindexed_rows for index in main.indexes)
        indexes = f"{len(main.indexes)} indexes lack {lacking:,} rows" if main.indexes else "no indexes"
        could = "to be " if self.dry_run else ""
        return (
            f"{'would maintain' if self.dry_run else 'maintained'} {self.table}: {main.rows:,} rows, "
            f"{files:,}{after[0]} files, {size_text(size)}{after[1]}; "
            f"{sum(t.small_fragments for t in self.tables):,} fragments {could}merged, "
            f"{sum(t.versions_removed for t in self.tables):,} versions and "
            f"{sum(t.orphans_removed for t in self.tables):,} orphaned files {could}removed; {indexes}{self._recalls()}"
        )

    def _recalls(self) -> str:
        return "".join(
            f"; recall@10 of {column} {recall:.3f}"
            if recall is not None
            else f"; the index of {column} no longer reaches its recall and is not used: run isthmus index"
            for column, recall in self.recalls.items()
        )


def run(config: MaintainConfig) -> MaintainReport:
    """Maintain a table, its rejects and its ledger, under the table's lease.

    Raises:
        FileNotFoundError: there is no such table.
        LeaseHeldError: another job writes to the table; the message names it.
        RuntimeError: a check of rows, indexes or ledger failed; no version was removed.
        OSError: the store fails; the table is whole.
    """
    from pipelines.ingest.maintenance.maintain import dry_run, maintain
    from pipelines.ingest.maintenance.versions import Retention

    started = time.perf_counter()
    table = config.ref(config.table)
    no_rule = config.keep_versions is None and config.keep_days is None
    keep_days = _DEFAULT_KEEP_DAYS if no_rule else config.keep_days
    retention = Retention(
        keep_versions=config.keep_versions,
        keep_s=None if keep_days is None else keep_days * _DAY_S,
        min_age_s=config.min_age_hours * 3600,
    )
    done = dry_run(table, retention) if config.dry_run else maintain(table, retention, wait_s=config.wait_s)
    recalls = {} if config.dry_run else _recheck(table)
    seconds = round(time.perf_counter() - started, 3)
    return MaintainReport(
        table=str(table), dry_run=config.dry_run, seconds=seconds, tables=tuple(done), recalls=recalls
    )


def _recheck(table: TableRef) -> dict[str, float | None]:
    """The recall@10 of each indexed vector column, measured after the indexes have taken in all rows."""
    from pipelines.search.indexing.build import recheck_vector_index
    from pipelines.search.indexing.parameters import published_columns
    from pipelines.tables.opening import open_dataset

    found = {column: recheck_vector_index(table, column) for column in published_columns(open_dataset(table))}
    return {column: parameters.recall if parameters else None for column, parameters in found.items()}
