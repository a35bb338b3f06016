"""`isthmus finetune`: fine-tune an encoder on the image-text pairs of a corpus."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from cyclopts import Parameter
from pydantic import Field, model_validator

from jobs.config import CorpusStoreConfig

if TYPE_CHECKING:
    from pipelines.store.storage import TableRef
    from pipelines.train.finetuning.finetune import TrainReport

_THUMBNAIL_MARGIN = 8 / 7


@Parameter(name="*")
class FinetuneConfig(CorpusStoreConfig):
    """Config of `isthmus finetune`."""

    corpus: str = Field(
        description="Training data: a corpus, which is embedded first, or a table that `isthmus embed` wrote."
    )
    encoder: str = Field(
        description="Encoder to start from: a dual tower, a two-tower "
        "family, or IMAGE+TEXT, two backbones that get fresh heads."
    )
    out: str = Field(description="Directory for the trained encoder. Checkpoints and logs go to OUT.run beside it.")
    train_image: str = Field(
        default="auto",
        description="Part of the image tower to train: frozen (none), head, last:N (the last "
        "N blocks), lora:RANK or full. auto: head for a dual tower, frozen for a family.",
    )
    train_text: str = Field(
        default="auto",
        description="Part of the text tower to train: frozen (none), head, last:N (the last "
        "N blocks), lora:RANK or full. auto: head for a dual tower, full for a family.",
    )
    dim: int = Field(default=256, ge=2, description="Length of the vectors that fresh heads give.")
    head: Literal["linear", "mlp"] = Field(
        default="linear", description="Type of fresh heads: linear (one layer) or mlp (two layers)."
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Dropout: share of the inputs of fresh heads that each training step drops.",
    )
    start: Literal["random", "cca"] = Field(
        default="random",
        description="Initial weights of fresh linear heads: random, "
        "or cca, the closed form of canonical correlation analysis.",
    )
    loss: list[str] = Field(
        default_factory=lambda: ["infonce"],
        description="Losses to add up, each as NAME or NAME:weight=W,OPTION=V. NAME is infonce, "
        "siglip, top_k, max_of_hinges, hardness, memory_bank, distill_l2 or distill_kl.",
    )
    teacher: str | None = Field(
        default=None,
        description="Teacher of the losses distill_*: a table of the "
        "same corpus, or an encoder, which embeds the corpus first.",
    )
    negatives: str | None = Field(
        default=None, description="Table of hard negatives that `isthmus mine` wrote; default: none."
    )
    negatives_per_row: int = Field(
        default=1, ge=1, description="Number of mined negatives added to the batch for each of its rows."
    )
    remine_every: int | None = Field(
        default=None,
        ge=1,
        description="Mine hard negatives again with the current model every this many epochs; default: never.",
    )
    where: str | None = Field(
        default=None, description="SQL filter of the rows to use, for training and validation; default: all rows."
    )
    validation_where: str | None = Field(
        default=None,
        description="SQL filter of the validation rows among them; default: --validation-fraction decides.",
    )
    validation_fraction: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the groups (see --group) that are used for validation; ignored with --validation-where.",
    )
    group: str = Field(
        default="item_id",
        description="Column that defines groups: rows with equal values are all training rows or all validation rows.",
    )
    epochs: int = Field(default=10, ge=1, description="Passes over the training rows.")
    batch_size: int = Field(default=256, ge=2, description="Pairs in a batch, summed over all training processes.")
    chunk_size: int | None = Field(
        default=None,
        ge=1,
        description="Pairs in memory at once (GradCache), to fit large "
        "batches; gives the same result. Default: the whole batch.",
    )
    learning_rate: float = Field(
        default=1e-4, gt=0, description="Peak learning rate of the backbones; it follows a cosine schedule."
    )
    head_factor: float = Field(
        default=1.0,
        gt=0,
        description="Factor on the learning rate for heads: their rate is this times --learning-rate.",
    )
    weight_decay: float = Field(default=0.1, ge=0, description="Weight decay of the weight matrices.")
    warmup_steps: int = Field(
        default=50, ge=0, description="Steps in which the learning rate rises linearly to its peak."
    )
    gradient_clip: float = Field(
        default=1.0, gt=0, description="Longest gradient norm; longer gradients are scaled down to it."
    )
    augment: Literal["none", "light", "strong"] = Field(
        default="none",
        description="Random changes of the training pictures. Other "
        "than none, the image backbone must run in every step.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Number format of training. auto: bf16 on CUDA, else fp32."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Save memory by recomputing activations in the backward pass."
    )
    metric: Literal["R@1", "R@5", "R@10", "MRR"] = Field(
        default="R@10", description="Validation metric by which the best weights are chosen."
    )
    patience: int = Field(
        default=0, ge=0, description="Stop after this many validations without improvement; 0: never."
    )
    evaluate_every: int = Field(default=1, ge=1, description="Epochs between validations.")
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="Steps between checkpoints; default: one checkpoint each epoch."
    )
    log_every: int = Field(default=10, ge=1, description="Steps between rows of the training log.")
    workers: int = Field(default=1, ge=1, description="Number of training processes.")
    sharding: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="What each training process holds: a copy of the model (ddp) or a part of it "
        "(fsdp). auto: fsdp if training a copy takes more than about half of a GPU's memory, else ddp.",
    )
    gpus: bool | None = Field(
        default=None, description="Give each training process a GPU; default: only if this machine has a GPU."
    )
    seed: int = Field(default=0, description="Random seed of fresh heads, of the order of rows and of augmentation.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Column names of the corpus: --columns.ROLE NAME, where ROLE is key, image, uri, caption or item.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        distils = any(text.startswith("distill") for text in self.loss)
        if distils and self.teacher is None:
            raise ValueError("loss distill_*: needs --teacher, a table or an encoder")
        if self.teacher is not None and not distils:
            raise ValueError("teacher: no loss uses it; add --loss distill_l2 or --loss distill_kl")
        if self.remine_every is not None and self.negatives is not None:
            raise ValueError("remine_every and negatives: give one of the two")
        if self.sharding == "fsdp" and self.workers == 1:
            raise ValueError(
                "sharding 'fsdp' with workers 1: needs two workers or more; raise --workers, or drop --sharding"
            )
        return self


def run(config: FinetuneConfig, on_row: Callable[[dict[str, Any]], None] = lambda row: None) -> TrainReport:
    """Fine-tune an encoder. A run after an interrupted one continues from its last checkpoint.

    Args:
        config: the job.
        on_row: called with each row of the training log.

    Raises:
        ValueError: encoder, corpus and options do not fit together, or OUT.run holds another run.
        TrainingDivergedError: the loss is not finite. The last good checkpoint is kept.
    """
    from pipelines.train.finetuning.finetune import train
    from pipelines.train.finetuning.remining import train_with_remining

    samples = prepare_samples(config)
    teacher = prepare_teacher(config, samples)
    settings = run_settings(config, samples, teacher)
    if config.remine_every is not None:
        return train_with_remining(settings, config.remine_every, on_row)
    return train(settings, on_row)


def run_settings(config: FinetuneConfig, samples: TableRef, teacher: TableRef | None) -> Any:
    """The config as the settings of the training pipeline.

    Raises:
        ValueError: a loss or a tuning does not exist.
    """
    from encoders.losses.weighted import parse_term
    from encoders.registry import describe
    from pipelines.store.storage import TableRef, absolute
    from pipelines.tables.splitting import Split
    from pipelines.train.finetuning.checkpoints import RunFolder
    from pipelines.train.finetuning.train_settings import ModelSettings, RunSettings, TrainSettings

    storage = config.storage()
    image, text = tunings(config)
    terms = tuple(parse_term(text) for text in config.loss)
    model = ModelSettings(
        spec=describe(config.encoder).card.spec,
        image_tuning=image,
        text_tuning=text,
        dim=config.dim,
        head=config.head,
        dropout=config.dropout,
        bias=any(term.name == "siglip" for term in terms),
        start=config.start,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=config.seed,
    )
    training = TrainSettings(
        model=model,
        losses=terms,
        **{
            name: getattr(config, name)
            for name in (
                *("learning_rate", "head_factor", "weight_decay", "warmup_steps", "gradient_clip", "chunk_size"),
                *("precision", "metric", "patience", "evaluate_every", "checkpoint_every", "log_every"),
            )
        },
    )
    return RunSettings(
        train=training,
        samples=samples,
        out=absolute(config.out),
        folder=RunFolder(uri=run_folder(config), storage=storage),
        split=Split(
            where=config.where,
            validation_where=config.validation_where,
            fraction=config.validation_fraction,
            group=config.group,
        ),
        batch_size=config.batch_size,
        epochs=config.epochs,
        augmentation=config.augment,
        corpus_storage=config.picture_storage(samples),
        teacher=teacher,
        negatives=TableRef.parse(config.negatives, storage) if config.negatives else None,
        negatives_per_row=config.negatives_per_row,
        workers=config.workers,
        sharding=config.sharding,
        use_gpu=_use_gpu(config),
    )


def run_folder(config: FinetuneConfig) -> str:
    """The URI of the folder with the run's checkpoints, logs and tables."""
    from pipelines.store.storage import absolute

    return absolute(config.out) + ".run"


def tunings(config: FinetuneConfig) -> tuple[str, str]:
    """The tunings of the image tower and the text tower, with `auto` resolved.

    `auto` trains the heads of a dual tower. Of a family it trains the text tower alone (LiT).
    """
    from encoders.registry import resolve

    fresh = "+" in config.encoder and not Path(config.encoder).exists()
    dual = fresh or resolve(config.encoder)[0] == "encoders.dual.card"
    default = ("head", "head") if dual else ("frozen", "full")
    chosen = [
        d if given == "auto" else given
        for given, d in zip((config.train_image, config.train_text), default, strict=True)
    ]
    return chosen[0], chosen[1]


def _use_gpu(config: FinetuneConfig) -> bool:
    if config.gpus is not None:
        return config.gpus
    import torch

    return torch.cuda.is_available()


def prepare_samples(config: FinetuneConfig) -> TableRef:
    """The training table: the named table, or a table in the run's folder into which the corpus is embedded.

    If both towers have a frozen part, these parts embed the corpus, so that they run only once. Otherwise the whole
    encoder does.
    """
    named = _table(config, config.corpus)
    return named or _embed(config, sample_encoder(config), "samples", thumbnails=_thumbnails(config))


def prepare_teacher(config: FinetuneConfig, samples: TableRef) -> TableRef | None:
    """The table with the teacher's vectors; None without a teacher.

    Raises:
        ValueError: the teacher is an encoder, but `corpus` is a table, so there is no corpus to embed.
    """
    if config.teacher is None:
        return None
    named = _table(config, config.teacher)
    if named is not None:
        return named
    if _table(config, config.corpus) is not None:
        raise ValueError(
            f"teacher {config.teacher!r}: an encoder needs the corpus, but {config.corpus} is a table; embed the "
            "corpus with the teacher and give that table"
        )
    return _embed(config, config.teacher, "teacher", thumbnails=0)


def sample_encoder(config: FinetuneConfig) -> str:
    """The spec of the encoder that embeds the corpus for training: the frozen parts if both towers have some."""
    from encoders.training.models import open_model
    from encoders.training.tuning import Tuning

    model = open_model(config.encoder, dim=config.dim, head=config.head)
    parts = []
    for modality, text in zip(("image", "text"), tunings(config), strict=True):
        tuning = Tuning.parse(text)
        parts.append(model.frozen_part(modality, head_trains=tuning.trains_head))
    if all(part is not None and not part.final for part in parts):
        return "+".join(part.spec for part in parts)
    return config.encoder


def _table(config: FinetuneConfig, uri: str) -> TableRef | None:
    """The table with this URI; None if there is none."""
    from pipelines.tables.opening import open_dataset

    try:
        table = config.ref(uri)
    except ValueError:
        return None
    return table if open_dataset(table, missing_ok=True) is not None else None


def _embed(config: FinetuneConfig, encoder: str, name: str, *, thumbnails: int) -> TableRef:
    import jobs.embed
    from jobs.display import row_progress, say

    uri = f"{run_folder(config)}/{name}"
    say(f"embedding the corpus with {encoder}")
    embed_config = jobs.embed.EmbedConfig(
        corpus=config.corpus,
        table=uri,
        encoder=encoder,
        columns=config.columns,
        thumbnails=thumbnails,
        storage_options=config.storage_options,
        corpus_storage_options=config.corpus_storage_options,
    )
    with row_progress("embedding") as progress:
        jobs.embed.run(embed_config, progress)
    return config.ref(uri)


def _thumbnails(config: FinetuneConfig) -> int:
    """Longest side in pixels of the thumbnails to train on: the tower's input size plus a margin for cropping.

    0 if the image tower does not run during training.
    """
    from encoders.registry import describe
    from encoders.training.tuning import Tuning

    runs = (
        Tuning.parse(tunings(config)[0]).touches_backbone or config.augment != "none" or Path(config.encoder).is_dir()
    )
    if not runs:
        return 0
    transform = describe(config.encoder).image_transform
    side = max(transform.size) if transform is not None and transform.size else 384
    return min(1024, math.ceil(side * _THUMBNAIL_MARGIN))
