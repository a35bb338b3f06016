"""`isthmus mine`: hard negatives from a table's own vectors, for `isthmus finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from pydantic import Field

from jobs.config import TableConfig

if TYPE_CHECKING:
    from pipelines.train.mining.mining_report import MiningReport


@Parameter(name="*")
class MineConfig(TableConfig):
    """Config of `isthmus mine`."""

    table: str = Field(description="FOLDER/NAME or s3://BUCKET/FOLDER/NAME, with both vectors in one space.")
    out: str = Field(description="The table of negatives; replaced if it is one already, never if it is another.")
    version: int | None = Field(default=None, ge=1, description="Version of the table; default: the latest.")
    tag: str | None = Field(default=None, description="Tag of the table, in place of a version.")
    negatives: int = Field(default=8, ge=1, description="The most negatives of an anchor and direction.")
    skip: int = Field(default=0, ge=0, description="Leave out so many of the best candidates that are no positives.")
    candidates: int = Field(default=100, ge=1, description="Best-ranked rows that are considered.")
    margin: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        default=0.05,
        description="Keep scores up to s - |s| * margin, s being the positive's; auto: by the positives' distribution.",
    )
    directions: Literal["both", "text_to_image", "image_to_text"] = Field(default="both", description="What is mined.")
    where: str | None = Field(default=None, description="SQL filter: only these rows are anchors and candidates.")
    method: Literal["auto", "exact", "ann"] = Field(
        default="auto", description="auto: exact up to 2e10 pairs, else the nearest lists of k-means centroids."
    )
    anchors: int | None = Field(default=None, ge=1, description="Sample so many anchors; default: all rows.")
    near_duplicate_image: float = Field(
        default=0.95, ge=-1, le=2, description="Cosine from which on two pictures are the same; above 1: never."
    )
    near_duplicate_text: float = Field(
        default=0.95, ge=-1, le=2, description="Cosine from which on two captions are the same; above 1: never."
    )
    target_recall: float = Field(
        default=0.99, gt=0, le=1, description="Recall against exact search that ann's probes are chosen for."
    )
    min_recall: float = Field(default=0.9, gt=0, le=1, description="Measured recall below which the job is refused.")
    probes: int | None = Field(default=None, ge=1, description="Lists that ann searches; default: by target_recall.")
    rows_per_task: int = Field(default=32_768, ge=1, description="Anchors of a task; bounds a worker's memory.")
    seed: int = Field(default=0, ge=0, description="Of the samples.")
    plot: Path | None = Field(default=None, description="Draw the score histograms into this file (.png, .svg, .pdf).")


def run(config: MineConfig) -> MiningReport:
    """Mine a table's hard negatives.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the table cannot be mined, or nothing was found; nothing was changed.
        MiningRecallError: approximate search misses too much; nothing was changed.
    """
    from pipelines.pages.plots import check_plot
    from pipelines.store.storage import TableRef
    from pipelines.train.mining.mine import mine
    from pipelines.train.mining.mining_report import plot
    from pipelines.train.mining.mining_settings import DIRECTIONS, MiningSettings

    if config.plot is not None:
        check_plot(config.plot)
    storage = config.storage()
    options = config.model_dump(exclude={"table", "out", "plot", "storage_options", "directions"})
    directions = DIRECTIONS if config.directions == "both" else (config.directions,)
    settings = MiningSettings(directions=directions, **options)
    report = mine(TableRef.parse(config.table, storage), TableRef.parse(config.out, storage), settings)
    if config.plot is not None:
        plot(report, config.plot)
    return report
