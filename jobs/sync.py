"""`isthmus sync`: make a table mirror its corpus: add new rows, replace changed ones, remove those of deleted files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cyclopts import Parameter
from pydantic import Field

from jobs.embed import EmbedConfig, run_with

if TYPE_CHECKING:
    from pipelines.ingest.embed_report import EmbedReport


@Parameter(name="*")
class SyncConfig(EmbedConfig):
    """Config of `isthmus sync`: all options of `isthmus embed`, and limits on what is removed."""

    keep_deleted: bool = Field(
        default=False, description="Keep the rows of files that were deleted from the corpus, as `isthmus embed` does."
    )
    max_delete_rate: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Refuse to run if more than this share of the table's rows came from files that were deleted.",
    )


def run(config: SyncConfig, progress: Callable[[int, int | None], None] | None = None) -> EmbedReport:
    """Embed new and changed files, and remove the rows of deleted files. The ledger keeps a tombstone of each of these.

    A file belongs to the corpus if CORPUS names it, whether it exists or not. Rows of other corpora stay.

    Args:
        config: the job.
        progress: called with (rows settled so far, total rows or None if unknown).

    Raises:
        ValueError: the corpus, the encoder and the table do not fit together, or too many rows would be removed.
        OSError: a store fails; the table is as of its last commit.
    """
    changes = {"delete_gone": not config.keep_deleted, "max_delete_rate": config.max_delete_rate}
    return run_with(config, changes, progress)
