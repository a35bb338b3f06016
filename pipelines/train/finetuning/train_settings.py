"""The settings of a training run: plain data, pickled to the workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from encoders.dual.card import Head
from encoders.images.augment import Augmentation
from encoders.losses.weighted import LossTerm
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.splitting import Split
from pipelines.train.finetuning.checkpoints import RunFolder

Start = Literal["random", "cca"]
Sharding = Literal["auto", "ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model to train. `jobs.finetune.FinetuneConfig` describes each field to its user."""

    spec: str
    image_tuning: str
    text_tuning: str
    dim: int = 256
    head: Head = "linear"
    dropout: float = 0.0
    bias: bool = False
    start: Start = "random"
    gradient_checkpointing: bool = False
    teacher_image_dim: int | None = None
    teacher_text_dim: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train it. `jobs.finetune.FinetuneConfig` describes each field to its user."""

    model: ModelSettings
    losses: tuple[LossTerm, ...] = (LossTerm("infonce"),)
    learning_rate: float = 1e-4
    head_factor: float = 1.0
    weight_decay: float = 0.1
    warmup_steps: int = 50
    gradient_clip: float = 1.0
    chunk_size: int | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    metric: str = "R@10"
    patience: int = 0
    evaluate_every: int = 1
    checkpoint_every: int | None = None
    log_every: int = 10
    stop_after_steps: int | None = None
    resident_bytes: int = 2 << 30
    tasks_per_worker: int = 1
    table_versions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The settings of a whole run.

    Attributes:
        train: the model and how it trains.
        samples: the training table, whose vectors may replace frozen towers.
        out: directory or `s3://` prefix of the trained model.
        folder: the run's folder, with checkpoints, logs and plots.
        split: which rows train and which validate.
        batch_size: pairs of a global batch, over all processes.
        epochs: passes over the training rows.
        augmentation: augmentation of the training pictures.
        corpus_storage: how to reach the pictures.
        teacher: table with a teacher's vectors; None without distillation.
        negatives: table of mined negatives; None without mining.
        negatives_per_row: number of mined negatives that join each row in its batch.
        workers: number of training processes.
        sharding: whether each process holds a copy of the model (`ddp`) or a part (`fsdp`); see `parallel.share_model`.
        use_gpu: whether each process gets a GPU.
        failures: number of worker deaths after which the run still restarts.
        validation_rows: the most rows that validate.
    """

    train: TrainSettings
    samples: TableRef
    out: str
    folder: RunFolder
    split: Split
    batch_size: int
    epochs: int
    augmentation: Augmentation = "none"
    corpus_storage: Storage = field(default_factory=Storage)
    teacher: TableRef | None = None
    negatives: TableRef | None = None
    negatives_per_row: int = 1
    workers: int = 1
    sharding: Sharding = "auto"
    use_gpu: bool = False
    failures: int = 3
    validation_rows: int = 5_000
