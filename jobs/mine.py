"""`isthmus mine`: mine hard negatives from a table's own vectors, for `isthmus finetune`."""

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

    table: str = Field(
        description="The table to mine: FOLDER/NAME or s3://BUCKET/FOLDER/NAME, "
        "with image and text vectors in a joint space."
    )
    out: str = Field(
        description="The table of hard negatives to write. An "
        "existing one is replaced; a table of another kind never is."
    )
    version: int | None = Field(
        default=None, ge=1, description="Version number of the table to mine; default: the latest."
    )
    tag: str | None = Field(default=None, description="Tag of the table's version to mine, instead of --version.")
    negatives: int = Field(default=8, ge=1, description="The most hard negatives of an anchor in each direction.")
    skip: int = Field(
        default=0, ge=0, description="Skip this many of the top-ranked candidates that are not positives."
    )
    candidates: int = Field(
        default=100, ge=1, description="Number of top-ranked rows that are considered for each anchor, after --skip."
    )
    margin: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = Field(
        default=0.05,
        description="Keep candidates that score at most s - |s| * margin, where s is the "
        "positive's score. auto: calibrated on the distribution of the positives' scores.",
    )
    directions: Literal["both", "text_to_image", "image_to_text"] = Field(
        default="both", description="Directions in which negatives are mined."
    )
    where: str | None = Field(
        default=None, description="SQL filter of the rows that are anchors and candidates; default: all rows."
    )
    method: Literal["auto", "exact", "ann"] = Field(
        default="auto",
        description="Search for candidates. exact: compare all pairs. ann: search only the "
        "lists of the nearest k-means centroids. auto: exact up to 2e10 pairs, else ann.",
    )
    anchors: int | None = Field(
        default=None, ge=1, description="Number of anchors, sampled at random; default: all rows."
    )
    near_duplicate_image: float = Field(
        default=0.95,
        ge=-1,
        le=2,
        description="Pictures whose cosine similarity is at least this count as the same picture; above 1: no check.",
    )
    near_duplicate_text: float = Field(
        default=0.95,
        ge=-1,
        le=2,
        description="Captions whose cosine similarity is at least this count as the same caption; above 1: no check.",
    )
    target_recall: float = Field(
        default=0.99,
        gt=0,
        le=1,
        description="Recall, compared with exact search, for which ann chooses the number of lists to search.",
    )
    min_recall: float = Field(default=0.9, gt=0, le=1, description="Fail if the measured recall of ann is below this.")
    probes: int | None = Field(
        default=None,
        ge=1,
        description="Number of lists that ann searches for each anchor; default: chosen for --target-recall.",
    )
    rows_per_task: int = Field(
        default=32_768, ge=1, description="Anchors in a Ray task; bounds the memory of a worker."
    )
    seed: int = Field(default=0, ge=0, description="Random seed of all samples.")
    plot: Path | None = Field(
        default=None, description="Plot the histograms of the scores to this file (.png, .svg, .pdf)."
    )


def run(config: MineConfig) -> MiningReport:
    """Mine a table's hard negatives.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the table cannot be mined, or no negatives were found. Nothing was written.
        MiningRecallError: the recall of approximate search is too low. Nothing was written.
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
