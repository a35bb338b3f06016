"""`isthmus finetune-reranker`: a cross-encoder learns to tell a table's pairs from mined negatives."""

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

    table: str = Field(description="A table that `isthmus embed` wrote, with captions.")
    model: str = Field(description="Where to start: BLIP, ViLT or BridgeTower with its matching head, as search's.")
    out: Path = Field(description="Directory of the trained model.")
    negatives: str | None = Field(
        default=None, description="A table of `isthmus mine`; without it negatives are drawn by chance."
    )
    where: str | None = Field(default=None, description="SQL filter: the rows that are used.")
    held_out: float = Field(default=0.1, ge=0, lt=1, description="Share of the items that validate.")
    epochs: int = Field(default=3, ge=1, description="Passes over the training rows.")
    batch_rows: int = Field(default=16, ge=1, description="Rows of a step; each gives three pairs.")
    learning_rate: float = Field(default=2e-5, gt=0, description="At its peak.")
    weight_decay: float = Field(default=0.05, ge=0, description="Of matrices.")
    warmup: float = Field(default=0.1, ge=0, le=1, description="Share of the steps in which the rate rises.")
    seed: int = Field(default=0, ge=0, description="Of the split, the order and the draw.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where it trains.")
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 on CUDA.")
    threads: int | None = Field(default=None, ge=1, description="Torch threads on the CPU.")


@dataclass(frozen=True, kw_only=True)
class FinetuneRerankerReport:
    """What was trained."""

    out: str
    report: MatchReport

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {"out": self.out, **self.report.to_dict()}


def run(
    config: FinetuneRerankerConfig, progress: Callable[[int, int | None], None] | None = None
) -> FinetuneRerankerReport:
    """Train a cross-encoder; a run that was interrupted goes on with its last whole epoch.

    Args:
        config: the job.
        progress: called with (steps done, steps in all).

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
    read = reader(config.corpus_storage())
    report = train(config.model, triplets, read, config.out, settings, options, progress or (lambda done, total: None))
    return FinetuneRerankerReport(out=str(config.out), report=report)
