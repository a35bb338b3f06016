"""`isthmus finetune`: an encoder and a corpus go in, a better encoder comes out."""

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

    corpus: str = Field(description="A corpus, which is embedded first; or a table that `isthmus embed` wrote.")
    encoder: str = Field(
        description="Where to start: a dual tower, a two-tower family, or IMAGE+TEXT: backbones that get fresh heads."
    )
    out: str = Field(description="Directory of the trained encoder. The run's own files go to OUT.run beside it.")
    train_image: str = Field(
        default="auto",
        description="frozen, head, last:N, lora:RANK, full; auto: head of a dual tower, frozen of a family.",
    )
    train_text: str = Field(
        default="auto", description="The same of the text tower; auto: head of a dual tower, full of a family."
    )
    dim: int = Field(default=256, ge=2, description="Length of the vectors, of fresh heads.")
    head: Literal["linear", "mlp"] = Field(default="linear", description="Fresh heads: one layer, or two.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of a fresh head's inputs that training drops.")
    start: Literal["random", "cca"] = Field(
        default="random", description="Fresh linear heads: random, or the closed form of canonical correlation."
    )
    loss: list[str] = Field(
        default_factory=lambda: ["infonce"],
        description="Losses to add up: NAME or NAME:weight=W,OPTION=V; infonce, siglip, top_k, max_of_hinges, "
        "hardness, memory_bank, distill_l2, distill_kl.",
    )
    teacher: str | None = Field(
        default=None, description="For distill_*: a table of the same corpus, or an encoder, which embeds it first."
    )
    negatives: str | None = Field(default=None, description="A table of `isthmus mine`.")
    negatives_per_row: int = Field(default=1, ge=1, description="Mined negatives that join each row in its batch.")
    remine_every: int | None = Field(
        default=None, ge=1, description="Mine anew, with the model so far, every N epochs."
    )
    where: str | None = Field(default=None, description="SQL filter: the rows that are used.")
    validation_where: str | None = Field(default=None, description="SQL filter of those that validate.")
    validation_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the groups that validate, without --validation-where."
    )
    group: str = Field(default="item_id", description="Column whose equal values stay on one side of the split.")
    epochs: int = Field(default=10, ge=1, description="Passes over the training rows.")
    batch_size: int = Field(default=256, ge=2, description="Pairs of a batch, over all workers.")
    chunk_size: int | None = Field(
        default=None, ge=1, description="Pairs that are in memory at once (GradCache); the result is the same."
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="Peak of the cosine schedule, for backbones.")
    head_factor: float = Field(default=1.0, gt=0, description="How much faster heads learn than backbones.")
    weight_decay: float = Field(default=0.1, ge=0, description="Of matrices.")
    warmup_steps: int = Field(default=50, ge=0, description="Steps of linear warm-up.")
    gradient_clip: float = Field(default=1.0, gt=0, description="Longest gradient.")
    augment: Literal["none", "light", "strong"] = Field(
        default="none", description="Change pictures at random; needs the image backbone to run in each step."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 on CUDA.")
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations, to save memory.")
    metric: Literal["R@1", "R@5", "R@10", "MRR"] = Field(default="R@10", description="Chooses the best weights.")
    patience: int = Field(default=0, ge=0, description="Stop after so many validations without gain; 0: never.")
    evaluate_every: int = Field(default=1, ge=1, description="Epochs between validations.")
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="Steps between checkpoints; default: an epoch."
    )
    log_every: int = Field(default=10, ge=1, description="Steps between rows of the training log.")
    workers: int = Field(default=1, ge=1, description="Training processes.")
    sharding: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="Each worker holds a copy of the model (ddp) or a part (fsdp); auto: fsdp if a GPU is too small.",
    )
    gpus: bool | None = Field(default=None, description="A GPU for each; default: if the cluster has any.")
    seed: int = Field(default=0, description="Of heads, order, augmentation.")
    columns: dict[str, str] = Field(default_factory=dict, description="Of the corpus, as for `isthmus embed`.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        distils = any(text.startswith("distill") for text in self.loss)
        if distils and self.teacher is None:
            raise ValueError("loss distill_*: needs --teacher")
        if self.teacher is not None and not distils:
            raise ValueError("teacher: no loss uses it; add --loss distill_l2 or --loss distill_kl")
        if self.remine_every is not None and self.negatives is not None:
            raise ValueError("remine_every and negatives: give one of the two")
        if self.sharding == "fsdp" and self.workers == 1:
            raise ValueError("sharding 'fsdp': one worker has nobody to share with; add --workers, or leave it auto")
        return self


def run(config: FinetuneConfig, on_row: Callable[[dict[str, Any]], None] = lambda row: None) -> TrainReport:
    """Fine-tune an encoder; a run that was interrupted goes on from its last checkpoint.

    Args:
        config: the job.
        on_row: called with each row of the training log.

    Raises:
        ValueError: encoder, corpus and options do not fit together, or OUT.run holds another run.
        TrainingDivergedError: the loss is not a number; the last good checkpoint stands.
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
    """The config as the pipeline takes it.

    Raises:
        ValueError: a loss or a tuning that does not exist.
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
        corpus_storage=config.corpus_storage(),
        teacher=teacher,
        negatives=TableRef.parse(config.negatives, storage) if config.negatives else None,
        negatives_per_row=config.negatives_per_row,
        workers=config.workers,
        sharding=config.sharding,
        use_gpu=_use_gpu(config),
    )


def run_folder(config: FinetuneConfig) -> str:
    """The URI of the folder of the run."""
    from pipelines.store.storage import absolute

    return absolute(config.out) + ".run"


def tunings(config: FinetuneConfig) -> tuple[str, str]:
    """What trains of each tower, `auto` decided: heads of a dual tower; of a family, the text tower (LiT)."""
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
    """The training table: the one that is named, or the corpus embedded into one in the run's folder.

    It is embedded by the frozen parts of the encoder where there are any, so that they run once; else by the encoder.
    """
    named = _table(config, config.corpus)
    return named or _embed(config, sample_encoder(config), "samples", thumbnails=_thumbnails(config))


def prepare_teacher(config: FinetuneConfig, samples: TableRef) -> TableRef | None:
    """The table with the teacher's vectors, None without a teacher.

    Raises:
        ValueError: the teacher is an encoder, and the training table was given without its corpus.
    """
    if config.teacher is None:
        return None
    named = _table(config, config.teacher)
    if named is not None:
        return named
    if _table(config, config.corpus) is not None:
        raise ValueError(
            f"teacher {config.teacher!r}: an encoder needs the corpus, and {config.corpus} is a table; embed the "
            "corpus with the teacher, and give that table"
        )
    return _embed(config, config.teacher, "teacher", thumbnails=0)


def sample_encoder(config: FinetuneConfig) -> str:
    """The spec of the encoder whose vectors serve training best."""
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
    """The table of this name, None if there is none."""
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
    """The pixels of the training pictures to keep: enough for the tower and some cropping; none if it does not run."""
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
