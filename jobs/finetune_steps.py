"""What `isthmus finetune` does before and between training: the training table, the teacher's, mining anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.finetune import FinetuneConfig, run_folder, run_settings, tunings

if TYPE_CHECKING:
    from pipelines.store.storage import TableRef
    from pipelines.train.finetuning.finetune import TrainReport

_THUMBNAIL_MARGIN = 8 / 7


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


def train_with_remining(
    config: FinetuneConfig,
    samples: TableRef,
    teacher: TableRef | None,
    on_row: Callable[[dict[str, Any]], None],
) -> TrainReport:
    """Train in stages; before each but the first, the model so far projects the training table, and mines it.

    Each stage is a run of its own, in a folder of its own, that starts from the model of the one before.

    Raises:
        ValueError: OUT is not on a disk, where the next stage could start from it.
    """
    from pipelines.ingest.projecting import project_table
    from pipelines.store.storage import TableRef, is_remote
    from pipelines.train.finetuning.finetune import train
    from pipelines.train.mining.mine import mine
    from pipelines.train.mining.mining_settings import MiningSettings

    assert config.remine_every is not None
    if is_remote(config.out):
        raise ValueError(
            f"out {config.out!r}: with remine_every, each stage starts from a model on a disk; give a path"
        )
    stages = math.ceil(config.epochs / config.remine_every)
    current, negatives = config.encoder, None
    for stage in range(stages):
        epochs = min(config.remine_every, config.epochs - stage * config.remine_every)
        last = stage == stages - 1
        out = config.out if last else f"{run_folder(config)}/stage{stage}"
        changes = {"encoder": current, "epochs": epochs, "out": out, "negatives": negatives, "remine_every": None}
        if stage:
            changes["start"] = "random"
        report = train(run_settings(config.model_copy(update=changes), samples, teacher), on_row)
        if last:
            break
        # In the run's folder: two runs on one table must not replace each other's.
        vectors = TableRef.parse(f"{out}_vectors", samples.storage)
        mined = vectors.sibling("mined")
        version = project_table(samples, out, vectors)
        if not _mined_from(vectors, version, mined):
            mine(vectors, mined, MiningSettings())
        current, negatives = out, str(mined)
    return report


def _mined_from(vectors: TableRef, version: int, mined: TableRef) -> bool:
    """Whether negatives of this very table are there; mined anew, they would make the next stage another run."""
    from pipelines.tables.opening import open_dataset
    from pipelines.train.mining.mined import read_mined

    if open_dataset(mined, missing_ok=True) is None:
        return False
    found = read_mined(mined)
    return (found.table, found.table_version) == (str(vectors), version)


def _table(config: FinetuneConfig, uri: str) -> TableRef | None:
    """The table of this name, None if there is none."""
    from pipelines.store.storage import Storage, TableRef
    from pipelines.tables.opening import open_dataset

    try:
        table = TableRef.parse(uri, Storage.from_options(config.storage_options))
    except ValueError:
        return None
    return table if open_dataset(table, missing_ok=True) is not None else None


def _embed(config: FinetuneConfig, encoder: str, name: str, *, thumbnails: int) -> TableRef:
    import jobs.embed
    from jobs.display import row_progress, say
    from pipelines.store.storage import Storage, TableRef

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
    return TableRef.parse(uri, Storage.from_options(config.storage_options))


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
