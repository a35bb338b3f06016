"""`isthmus fuse`: add a column of vectors that fuse the image vector and the text vector of each row."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter
from pydantic import Field

from jobs.config import TableConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipelines.search.fusing.column import Fused


@Parameter(name="*")
class FuseConfig(TableConfig):
    """Config of `isthmus fuse`."""

    image_weight: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Weight of the image vector; the text vector has weight 1 minus "
        "this. Default: the weight of the existing column, or 0.5 for a new column.",
    )
    anew: bool = Field(
        default=False,
        description="Measure the spreads of the image and text vectors again and rewrite "
        "the column for all rows. This drops its index: run `isthmus index` afterwards.",
    )


@dataclass(frozen=True, kw_only=True)
class FuseReport:
    """What was done to the fused column."""

    fused: Fused

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self.fused)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        done = self.fused
        head = Text(
            f"fused_vector of {done.table}: {done.outcome}, {done.written:,} rows written; {done.fused:,} of "
            f"{done.rows:,} rows have one",
            style="bold",
        )
        alone = f"{done.image_only:,} rows have only a picture and {done.text_only:,} only a caption"
        how = (
            f"image weight {done.recipe.image_weight:g}; vectors scaled by their spreads, "
            f"{done.recipe.image_spread:.3f} (image) and {done.recipe.text_spread:.3f} (text)"
        )
        return Group(
            head, Text(f"{how}; {alone}"), Text("search it with --vector fused_vector; index it with isthmus index")
        )


def run(config: FuseConfig) -> FuseReport:
    """Create the fused vectors of a table, or bring them up to date.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: its image and text vectors are not in a joint space, or the corpus has a column of that name.
        LeaseHeldError: a job writes to the table.
        TableMovedError: the table changed during the run; run the command again.
    """
    from pipelines.search.fusing.column import fuse_table

    table = config.ref(config.table)
    return FuseReport(fused=fuse_table(table, image_weight=config.image_weight, anew=config.anew))
