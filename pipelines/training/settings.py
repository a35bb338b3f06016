"""Everything that a training process needs to know: plain data, pickled to the workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from encoders.dual_card import Head
from encoders.losses.weighted import LossTerm

Start = Literal["random", "cca"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What is trained. `jobs.finetune.FinetuneConfig` says what each entry means to its user."""

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
    """How it is trained."""

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
