"""`isthmus dedup`: mark the rows that duplicate an earlier row of a table. No row is deleted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter
from pydantic import Field

from jobs.config import CorpusStoreConfig, TableConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipelines.curate.deduplication.deduplicate import Deduplicated
    from pipelines.store.storage import TableRef


@Parameter(name="*")
class DedupConfig(TableConfig, CorpusStoreConfig):
    """Config of `isthmus dedup`."""

    by: Literal["image", "text", "both"] = Field(
        default="image", description="What makes two rows duplicates: the same picture, the same caption, or both."
    )
    threshold: float = Field(
        default=0.95,
        gt=0,
        le=2,
        description="Rows whose cosine similarity is at least this "
        "are duplicates; above 1: only rows of identical content.",
    )
    method: Literal["auto", "exact", "cells"] = Field(
        default="auto",
        description="exact: compare all pairs of rows. cells: compare only rows that "
        "k-means puts into the same cell. auto: exact up to 140,000 rows, else cells.",
    )
    dry_run: bool = Field(default=False, description="Report the duplicates without marking them.")
    groups: int = Field(default=10, ge=0, description="Number of groups of duplicates to show, largest first.")
    html: Path | None = Field(
        default=None, description="Write these groups and their pictures to this file, as a self-contained HTML page."
    )
    seed: int = Field(
        default=0, ge=0, description="Random seed of the samples that k-means and the recall measurement draw."
    )


@dataclass(frozen=True, kw_only=True)
class DedupReport:
    """The duplicates that were found, and whether they were marked."""

    found: Deduplicated
    marked: bool
    page: str | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {**asdict(self.found), "marked": self.marked, "page": self.page}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        found = self.found
        head = Text(
            f"{found.rows:,} rows: {found.kept:,} kept, {found.exact:,} exact and {found.near:,} near duplicates of "
            f"{found.groups:,} rows",
            style="bold",
        )
        how = "all pairs compared" if found.method == "exact" else f"compared within cells, recall {found.recall:.1%}"
        hint = Text(
            f"{how}; search with --where 'duplicate_of IS NULL'" if self.marked else f"{how}; nothing was marked"
        )
        table = Table("row", "duplicates", "most similar (score)", box=None, header_style="bold", pad_edge=False)
        for group in found.largest:
            some = ", ".join(f"{r} ({s:.3f})" for r, s in zip(group.duplicates[:3], group.scores[:3], strict=True))
            table.add_row(group.row_id, f"{len(group.duplicates):,}", some)
        page = [Text(f"page: {self.page}")] if self.page else []
        return Group(head, hint, *([table] if found.largest else []), *page)


def run(config: DedupConfig) -> DedupReport:
    """Find and mark the duplicates of a table.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the table lacks the vectors to compare, or the corpus has columns with the names of the marks.
        LeaseHeldError: a job writes to the table.
        TableMovedError: the table changed during the run. Nothing was marked.
    """
    from pipelines.curate.deduplication.deduplicate import deduplicate

    table = config.ref(config.table)
    found = deduplicate(
        table,
        by=config.by,
        threshold=config.threshold,
        method=config.method,
        mark=not config.dry_run,
        groups=config.groups,
        seed=config.seed,
    )
    page = _write_page(config, table, found) if config.html is not None else None
    return DedupReport(found=found, marked=not config.dry_run, page=page)


def _write_page(config: DedupConfig, table: TableRef, found: Deduplicated) -> str:
    from pipelines.curate.deduplication.duplicates_page import write_groups

    assert config.html is not None
    storage = config.picture_storage(table)
    return str(write_groups(config.html, table, found.largest, storage))
