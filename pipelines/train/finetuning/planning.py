"""The plan of a run: the rows, joins and batches as plain data, decided before a training process starts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from encoders.protocol import EncoderCard
from pipelines.rows.contract import IMAGE_URI, IMAGE_VECTOR, ROW_ID, TEXT_VECTOR
from pipelines.tables.joins import RowIndex, joined_offsets, places_of
from pipelines.tables.opening import open_dataset
from pipelines.tables.provenance import Provenance
from pipelines.tables.splitting import select
from pipelines.train.finetuning.batches import BatchPlan
from pipelines.train.finetuning.building import build
from pipelines.train.finetuning.loading import Needs, TableAt, pictures_column
from pipelines.train.finetuning.loop import Work
from pipelines.train.finetuning.train_settings import RunSettings
from pipelines.train.mining.mined import read_mined

if TYPE_CHECKING:
    import lance

Row = dict[str, Any]


def plan_work(settings: RunSettings) -> Work:
    """Decide the rows, joins and batches of a run, before a training process starts.

    Raises:
        ValueError: the model, the tables and the settings do not fit together.
        EncoderMismatchError: the negatives were mined with another encoder than training starts from.
    """
    dataset = open_dataset(settings.samples)
    at = TableAt(ref=settings.samples, version=int(dataset.version))
    features = _features(settings, dataset)
    pictures = pictures_column(dataset.schema)
    needed = tuple({"image": IMAGE_VECTOR, "text": TEXT_VECTOR}[m] for m in features)
    needed += () if "image" in features else (pictures or IMAGE_URI,)
    selected = select(dataset, settings.split, needed)
    train_rows, validation = selected.train, _thinned(selected.validation, settings.validation_rows)
    versions = {"samples": at.version}
    teacher_at, teacher_rows = None, None
    columns: tuple[str, ...] = ()
    if settings.teacher is not None:
        teacher = open_dataset(settings.teacher)
        teacher_at = TableAt(ref=settings.teacher, version=int(teacher.version))
        versions["teacher"] = teacher_at.version
        columns = tuple(n for n in (IMAGE_VECTOR, TEXT_VECTOR) if n in teacher.schema.names)
        teacher_rows = joined_offsets(dataset, train_rows, teacher, f"teacher {settings.teacher}")
    negatives = None
    if settings.negatives is not None:
        negatives, versions["negatives"] = _negatives(settings, dataset, train_rows)
    plan = BatchPlan(
        rows=len(train_rows),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seed=settings.train.model.seed,
        negatives=negatives,
        negatives_per_row=settings.negatives_per_row,
    )
    needs = Needs(
        samples=at,
        image_features="image" in features,
        text_features="text" in features,
        pictures=pictures,
        transform=None if "image" in features else _transform(settings.train.model.spec),
        augmentation=settings.augmentation,
        storage=settings.corpus_storage,
        teacher=teacher_at,
        teacher_columns=columns,
        seed=settings.train.model.seed,
    )
    model = replace(settings.train.model, **_teacher_dims(settings, columns))
    return Work(
        settings=replace(settings.train, model=model, table_versions=versions),
        plan=plan,
        needs=needs,
        train=train_rows,
        validation=validation,
        teacher_train=teacher_rows,
        folder=settings.folder,
        board=None,
        sharding=settings.sharding,
    )


def _features(settings: RunSettings, dataset: lance.LanceDataset) -> list[str]:
    """The modalities whose frozen part the table's vectors can replace.

    Raises:
        ValueError: the model cannot be tuned this way, or a tower runs outside torch and the table does not hold its
            vectors.
    """
    from encoders.training.optimiser import parameter_groups
    from encoders.training.tuning import Tuning

    # Build the model as every process will, so that an impossible tuning is refused before anything runs.
    built = build(settings.train.model)
    parameter_groups(built, learning_rate=settings.train.learning_rate, weight_decay=settings.train.weight_decay)
    model = built.model
    provenance = Provenance.from_schema(dataset.schema, str(settings.samples))
    found = []
    for modality, text in (("image", settings.train.model.image_tuning), ("text", settings.train.model.text_tuning)):
        tuning = Tuning.parse(text)
        part = None if tuning.touches_backbone else model.frozen_part(modality, head_trains=tuning.trains_head)
        tower = provenance.tower(modality)  # type: ignore[arg-type]
        fits = part is not None and tower is not None and tower.fingerprint == part.fingerprint
        if fits and not (modality == "image" and settings.augmentation != "none"):
            found.append(modality)
        elif model.tower(modality).backbone is None:
            wanted = part.spec if part else "its own"
            raise ValueError(
                f"table {settings.samples}: its {modality} vectors are not those of {wanted!r}, whose features the "
                f"{modality} tower needs; embed the corpus with {wanted!r} first"
            )
    return found


def _negatives(settings: RunSettings, dataset: lance.LanceDataset, train: Any) -> tuple[Any, int]:
    """Places of each training row's mined negatives among the training rows, int64 (rows, most), padded with −1.

    Raises:
        EncoderMismatchError: they were mined with another encoder than training starts from.
        ValueError: none of them has both its rows among the training rows.
    """
    assert settings.negatives is not None
    mined = read_mined(settings.negatives)
    _check_miner(settings, dataset, mined)
    index = RowIndex(dataset)
    anchors = places_of(index.find(mined.negatives[ROW_ID]), train)
    others = places_of(index.find(mined.negatives["negative_row_id"]), train)
    kept = (anchors >= 0) & (others >= 0)
    if not kept.any():
        raise ValueError(f"negatives {settings.negatives}: none of its rows trains; mine the table that is trained on")
    version = int(open_dataset(settings.negatives).version)
    return padded_lists(anchors[kept], others[kept], len(train)), version


def padded_lists(keys: Any, values: Any, count: int) -> Any:
    """The values of each key in their order, int64 (count, most), padded with −1.

    >>> padded_lists(np.array([1, 1, 0]), np.array([5, 6, 7]), 3).tolist()
    [[7, -1], [5, 6], [-1, -1]]
    """
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    counts = np.bincount(keys, minlength=count)
    table = np.full((count, int(counts.max(initial=0))), -1, np.int64)
    table[keys, np.arange(len(keys)) - (np.cumsum(counts) - counts)[keys]] = values
    return table


def _check_miner(settings: RunSettings, dataset: lance.LanceDataset, mined: Any) -> None:
    """Check that the negatives are hard for the initial model, or for the towers that made the training table."""
    from encoders.registry import describe

    spec = settings.train.model.spec
    cards: list[EncoderCard] = [Provenance.from_schema(dataset.schema).encoder]
    if "+" not in spec:
        cards.append(describe(spec).card)
    if mined.encoder.fingerprint not in {card.fingerprint for card in cards}:
        mined.check_encoder(cards[-1], f"negatives {settings.negatives}")


def _teacher_dims(settings: RunSettings, columns: tuple[str, ...]) -> dict[str, Any]:
    if settings.teacher is None:
        return {}
    schema: pa.Schema = open_dataset(settings.teacher).schema
    dims = {name: schema.field(name).type.list_size for name in columns}
    direct = any(term.name == "distill_l2" for term in settings.train.losses)
    return {
        "teacher_image_dim": dims.get(IMAGE_VECTOR) if direct else None,
        "teacher_text_dim": dims.get(TEXT_VECTOR) if direct else None,
    }


def _transform(spec: str) -> Any:
    from encoders.registry import describe

    return describe(spec).image_transform


def _thinned(offsets: Any, most: int) -> Any:
    """Evenly spread offsets, at most `most`."""
    if len(offsets) <= most:
        return offsets
    return offsets[np.linspace(0, len(offsets) - 1, most).astype(np.int64)]


def describe_run(settings: RunSettings, work: Work) -> Row:
    """What identifies a run: all settings that change the weights, and the versions of the tables."""
    # Settings of memory, logging and checkpoints do not change the weights, nor does the sharding of the model.
    aside: Row = {"stop_after_steps": None, "log_every": 1, "checkpoint_every": None}
    aside |= {"resident_bytes": 0, "tasks_per_worker": 1}
    train = asdict(replace(work.settings, **aside))
    return {
        "train": json.loads(json.dumps(train)),
        "samples": str(settings.samples),
        "teacher": str(settings.teacher) if settings.teacher else None,
        "negatives": str(settings.negatives) if settings.negatives else None,
        "negatives_per_row": settings.negatives_per_row,
        "split": asdict(settings.split),
        "batch_size": settings.batch_size,
        "epochs": settings.epochs,
        "augmentation": settings.augmentation,
        "features": [
            n for n, used in (("image", work.needs.image_features), ("text", work.needs.text_features)) if used
        ],
    }
