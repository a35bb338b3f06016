"""A training run, end to end: plan, train on Ray, log, export."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from encoders.images.augment import Augmentation
from encoders.protocol import EncoderCard
from pipelines.contract import IMAGE_VECTOR, ROW_ID, TEXT_VECTOR
from pipelines.embedding import session
from pipelines.mining.mined import read_mined
from pipelines.provenance import Provenance
from pipelines.sink.tables import open_dataset
from pipelines.storage import Storage, TableRef
from pipelines.training.batches import BatchPlan
from pipelines.training.checkpoints import BEST, LATEST, RunFolder, claim_run
from pipelines.training.export import save_model
from pipelines.training.joins import RowIndex, joined_offsets, places_of
from pipelines.training.loading import Needs, TableAt, pictures_column
from pipelines.training.loop import DIVERGED, Work, train_process
from pipelines.training.selection import Split, select
from pipelines.training.settings import TrainSettings

if TYPE_CHECKING:
    import lance

log = logging.getLogger(__name__)
Row = dict[str, Any]
OnRow = Callable[[Row], None]
_POLL_S = 0.2
_SHOWN_ROWS = 10


class TrainingDivergedError(RuntimeError):
    """The loss is not a number. Names the rows of the batch; the last good checkpoint stands."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """A run.

    Attributes:
        train: how the model trains.
        samples: the training table, whose vectors may stand in for frozen towers.
        out: the directory of the trained model.
        folder: checkpoints, logs and plots.
        split: which rows train and which validate.
        batch_size: pairs of a global batch.
        epochs: passes over the training rows.
        augmentation: of pictures.
        corpus_storage: how to reach the pictures.
        teacher: a table with a teacher's vectors.
        negatives: a table of mined negatives.
        negatives_per_row: how many of them join each row.
        workers: training processes.
        use_gpu: whether each gets a GPU.
        failures: worker deaths that are survived.
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
    use_gpu: bool = False
    failures: int = 3
    validation_rows: int = 5_000


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a run did."""

    model: str
    run: str
    encoder: str
    train_rows: int
    validation_rows: int
    steps: int
    epochs: float
    resumed_at: int
    features: list[str]
    best: dict[str, float]
    start: dict[str, float]
    loss: float | None
    scale: float | None
    table_versions: dict[str, int]
    warnings: list[str]
    seconds: float
    pages: list[str] = field(default_factory=list)

    def to_dict(self) -> Row:
        """JSON-ready data."""
        return asdict(self)


def train(settings: RunSettings, on_row: OnRow = lambda row: None) -> TrainReport:
    """Train, or go on training, and write the best model.

    Args:
        settings: the run.
        on_row: called with each row of the log as it comes.

    Raises:
        ValueError: the model, the tables and the settings do not fit together, or the folder holds another run.
        TrainingDivergedError: the loss is not a number.
        OSError: a checkpoint cannot be written; the former one is valid.
    """
    started = time.perf_counter()
    work = plan_work(settings)
    resumed = claim_run(settings.folder, describe_run(settings, work))
    session.ensure_ray()
    session.configure_data_context(progress=False)
    before = settings.folder.load(LATEST) if resumed else None
    warnings: list[str] = []
    if before is None or not before["finished"]:
        _execute(settings, work, lambda row: _show(row, warnings, on_row))
    _raise_if_diverged(settings, work)
    state = settings.folder.load(LATEST)
    assert state is not None
    history = json.loads(state["history"])
    best = settings.folder.load(BEST)
    model = save_model(
        work.settings.model, best if best is not None else state["model"], settings.out, _story(settings, work)
    )
    from pipelines.training.logs import write_logs

    pages = write_logs(settings.folder, history)
    return _report(settings, work, history, state, warnings, pages, model, before, time.perf_counter() - started)


def plan_work(settings: RunSettings) -> Work:
    """All that is decided before a process starts: rows, joins, batches; plain data."""
    dataset = open_dataset(settings.samples)
    at = TableAt(ref=settings.samples, version=int(dataset.version))
    features = _features(settings, dataset)
    needed = tuple({"image": IMAGE_VECTOR, "text": TEXT_VECTOR}[m] for m in features)
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
        pictures=pictures_column(dataset.schema),
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
    )


def _features(settings: RunSettings, dataset: lance.LanceDataset) -> list[str]:
    """Towers whose frozen part the table's vectors stand in for.

    Raises:
        ValueError: a tower that runs outside torch, and whose vectors the table does not hold.
    """
    from encoders.training.models import open_model
    from encoders.training.tuning import Tuning

    model = open_model(settings.train.model.spec, dim=settings.train.model.dim, head=settings.train.model.head)
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
    """Places among the training rows of each one's mined negatives, int64 (rows, most), −1 where there are fewer.

    Raises:
        EncoderMismatchError: they were mined with another encoder than training starts from.
        ValueError: none of them is about rows that train.
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
    """int64 (count, most): the values of each key in their order, −1 where there are fewer.

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
    """The negatives must be hard for the model that starts, or for the towers that the training table is made of."""
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
    """Evenly spread offsets, at most so many."""
    if len(offsets) <= most:
        return offsets
    return offsets[np.linspace(0, len(offsets) - 1, most).astype(np.int64)]


def describe_run(settings: RunSettings, work: Work) -> Row:
    """What makes two runs the same: all settings that change the weights, and the versions of the tables."""
    train = asdict(replace(work.settings, stop_after_steps=None, log_every=1))
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


def _execute(settings: RunSettings, work: Work, on_row: OnRow) -> None:
    """Ray Train, with the log shown while it runs."""
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    from pipelines.training.board import Board

    board = ray.remote(Board).options(num_cpus=0).remote()
    held = ray.put(replace(work, board=board))
    with tempfile.TemporaryDirectory(prefix="isthmus-train-") as scratch:
        trainer = TorchTrainer(
            train_process,
            train_loop_config={"work": held},
            scaling_config=ray.train.ScalingConfig(
                num_workers=settings.workers, use_gpu=settings.use_gpu, resources_per_worker=_resources(settings)
            ),
            run_config=ray.train.RunConfig(
                # A name of its own: Ray would take a run of an old name up, silently, from its own checkpoints.
                name=f"isthmus-{uuid.uuid4().hex[:12]}",
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=settings.failures),
            ),
        )
        _fit(trainer, board, on_row)


def _resources(settings: RunSettings) -> dict[str, float]:
    return {"CPU": 1, **({"GPU": 1} if settings.use_gpu else {})}


def _fit(trainer: Any, board: Any, on_row: OnRow) -> None:
    import ray

    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        for row in ray.get(board.take.remote()):
            on_row(row)
    if failure:
        raise _cause(failure[0])


def _cause(error: BaseException) -> BaseException:
    """The error that a worker raised, out of what Ray Train wraps it in."""
    inner = getattr(error, "worker_failures", None)
    if inner:
        first = next(iter(inner.values()))
        return _cause(first)
    cause = getattr(error, "cause", None) or getattr(error, "_cause", None)
    return _cause(cause) if isinstance(cause, BaseException) and cause is not error else error


def _show(row: Row, warnings: list[str], on_row: OnRow) -> None:
    if "warning" in row:
        warnings.append(row["warning"])
    on_row(row)


def _raise_if_diverged(settings: RunSettings, work: Work) -> None:
    raw = settings.folder.read(DIVERGED)
    if raw is None:
        return
    said = json.loads(raw)
    rows = open_dataset(settings.samples).take(said["offsets"], columns=[ROW_ID])[ROW_ID].to_pylist()
    settings.folder.write(DIVERGED, json.dumps({**said, "row_ids": rows}).encode())
    shown = ", ".join(map(str, rows[:_SHOWN_ROWS])) + (" …" if len(rows) > _SHOWN_ROWS else "")
    raise TrainingDivergedError(
        f"step {said['step']}: the loss is {said['loss']}; rows of the batch: {shown} (all in "
        f"{settings.folder.path(DIVERGED)}). The checkpoint before it stands; lower --learning-rate, look at the rows, "
        "and begin a new run"
    )


def _story(settings: RunSettings, work: Work) -> Row:
    """What is written beside the weights: how they came about."""
    return {**describe_run(settings, work), "train_rows": len(work.train), "validation_rows": len(work.validation)}


def _report(
    settings: RunSettings,
    work: Work,
    history: list[Row],
    state: Row,
    warnings: list[str],
    pages: list[str],
    model: str,
    before: Row | None,
    seconds: float,
) -> TrainReport:
    validations = [row["validation"] for row in history if "validation" in row]
    losses = [row for row in history if "loss" in row]
    metric = settings.train.metric
    return TrainReport(
        model=model,
        run=settings.folder.uri,
        encoder=settings.train.model.spec,
        train_rows=len(work.train),
        validation_rows=len(work.validation),
        steps=state["step"],
        epochs=round(state["step"] / work.plan.steps_per_epoch, 2),
        resumed_at=int(before["step"]) if before else 0,
        features=describe_run(settings, work)["features"],
        best=max(validations, key=lambda m: m[metric]) if validations else {},
        start=validations[0] if validations else {},
        loss=losses[-1]["loss"] if losses else None,
        scale=losses[-1]["scale"] if losses else None,
        table_versions=work.settings.table_versions,
        warnings=warnings,
        seconds=round(seconds, 1),
        pages=pages,
    )
