"""`isthmus sync`: make a table mirror its corpus: what is new comes, what changed is replaced, what is gone leaves."""

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
    """Config of `isthmus sync`: that of `isthmus embed`, and what may leave."""

    keep_deleted: bool = Field(default=False, description="Keep the rows of files that are gone, as `embed` does.")
    max_delete_rate: float = Field(
        default=0.5, ge=0, le=1, description="Refuse if files are gone that gave a greater share of the table's rows."
    )


def run(config: SyncConfig, progress: Callable[[int, int | None], None] | None = None) -> EmbedReport:
    """Embed what is new or changed, and remove what is gone. The ledger keeps a tombstone of each file that left.

    A file belongs to the corpus if CORPUS names it, whether it is there or not: rows that other corpora gave stay.

    Args:
        config: the job.
        progress: called with (rows settled so far, rows in all if known).

    Raises:
        ValueError: the corpus, the encoder and the table do not fit together, or too much would leave.
        OSError: a store fails; the table is as of its last commit.
    """
    changes = {"delete_gone": not config.keep_deleted, "max_delete_rate": config.max_delete_rate}
    return run_with(config, changes, progress)
