"""`isthmus fuse`: a column of vectors that hold of each row its picture and its words, to be searched as one."""

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
        description="The say of the picture, the caption has the rest. Default: that of the column, 0.5 for a new one.",
    )
    anew: bool = Field(
        default=False, description="Measure the spreads of both kinds again and write all rows; index it again then."
    )


@dataclass(frozen=True, kw_only=True)
class FuseReport:
    """What was fused."""

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
        alone = f"{done.image_only:,} rows have a picture alone and {done.text_only:,} a caption alone"
        how = (
            f"image weight {done.recipe.image_weight:g}; levelled by spreads of {done.recipe.image_spread:.3f} (image) "
            f"and {done.recipe.text_spread:.3f} (text)"
        )
        return Group(head, Text(f"{how}; {alone}"), Text("search with --vector fused_vector; isthmus index indexes it"))


def run(config: FuseConfig) -> FuseReport:
    """Make, or bring up to date, the fused vectors of a table.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: its image and text vectors are not in one space, or it has a column of its own with that name.
        LeaseHeldError: a job writes to the table.
        TableMovedError: it changed meanwhile; run again.
    """
    from pipelines.search.fusing.column import fuse_table

    table = config.ref(config.table)
    return FuseReport(fused=fuse_table(table, image_weight=config.image_weight, anew=config.anew))
