"""`isthmus finetune-reranker`: train a cross-encoder to tell a table's pairs from mined negatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter
from pydantic import Field

from jobs.config import CorpusStoreConfig, TableConfig

if TYPE_CHECKING:
    from pipelines.train.reranking.training import MatchReport


@Parameter(name="*")
class FinetuneRerankerConfig(TableConfig, CorpusStoreConfig):
    """Config of `isthmus finetune-reranker`."""

    table: str = Field(
        description="The table to train on, written by `isthmus embed`, "
        "with captions: FOLDER/NAME or s3://BUCKET/FOLDER/NAME."
    )
    model: str = Field(
        description="Model to start from: BLIP, ViLT or BridgeTower with its matching head, a directory or a hub id."
    )
    out: Path = Field(description="Directory for the trained model.")
    negatives: str | None = Field(
        default=None,
        description="Table of hard negatives that `isthmus mine` wrote; default: negatives are drawn at random.",
    )
    where: str | None = Field(
        default=None, description="SQL filter of the rows to use, for training and validation; default: all rows."
    )
    held_out: float = Field(default=0.1, ge=0, lt=1, description="Share of the items that are held out for validation.")
    epochs: int = Field(default=3, ge=1, description="Passes over the training rows.")
    batch_rows: int = Field(default=16, ge=1, description="Rows in a training step; each gives three pairs.")
    learning_rate: float = Field(default=2e-5, gt=0, description="Learning rate at the peak of its schedule.")
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay of the weight matrices.")
    warmup: float = Field(
        default=0.1, ge=0, le=1, description="Share of the steps in which the learning rate rises to its peak."
    )
    seed: int = Field(
        default=0, ge=0, description="Random seed of the split, of the order of rows and of the draw of negatives."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the model trains. auto: on a GPU if one is available."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Number format of training. auto: bf16 on CUDA, else fp32."
    )
    threads: int | None = Field(
        default=None, ge=1, description="Torch threads on the CPU; default: torch's own choice."
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneRerankerReport:
    """The trained model's directory and the report of its training."""

    out: str
    report: MatchReport

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {"out": self.out, **self.report.to_dict()}


def run(
    config: FinetuneRerankerConfig, progress: Callable[[int, int | None], None] | None = None
) -> FinetuneRerankerReport:
    """Train a cross-encoder. A run after an interrupted one continues after its last complete epoch.

    Args:
        config: the job.
        progress: called with (steps done, total steps).

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the model, the table or the negatives cannot be used.
    """
    from encoders.protocol import EncoderOptions
    from pipelines.sources.row_pictures import reader
    from pipelines.store.storage import TableRef
    from pipelines.tables.filters import check_filter
    from pipelines.tables.opening import open_dataset
    from pipelines.train.mining.mined import read_mined
    from pipelines.train.reranking.training import MatchSettings, train
    from pipelines.train.reranking.triplets import read_triplets

    storage = config.storage()
    table = TableRef.parse(config.table, storage)
    dataset = open_dataset(table)
    if config.where is not None:
        check_filter(config.where, dataset)
    mined = read_mined(TableRef.parse(config.negatives, storage)) if config.negatives is not None else None
    triplets = read_triplets(dataset, config.where, mined, config.held_out, config.seed, str(table))
    settings = MatchSettings(
        epochs=config.epochs,
        batch_rows=config.batch_rows,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        seed=config.seed,
    )
    options = EncoderOptions(
        device=config.device, precision=config.precision, threads=config.threads, batch_size=3 * config.batch_rows
    )
    read = reader(config.picture_storage(table))
    report = train(config.model, triplets, read, config.out, settings, options, progress or (lambda done, total: None))
    return FinetuneRerankerReport(out=str(config.out), report=report)
