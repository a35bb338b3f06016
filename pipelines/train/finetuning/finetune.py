"""A training run from end to end: plan, train on Ray, log, export."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.cluster import session
from pipelines.rows.contract import ROW_ID
from pipelines.tables.opening import open_dataset
from pipelines.train.finetuning.checkpoints import BEST, LATEST, claim_run
from pipelines.train.finetuning.executing import execute
from pipelines.train.finetuning.export import save_model
from pipelines.train.finetuning.logs import write_logs
from pipelines.train.finetuning.loop import DIVERGED, Work
from pipelines.train.finetuning.planning import describe_run, plan_work
from pipelines.train.finetuning.train_settings import RunSettings

Row = dict[str, Any]
OnRow = Callable[[Row], None]
_SHOWN_ROWS = 10


class TrainingDivergedError(RuntimeError):
    """The loss is not a finite number. The message names the rows of the batch; the last good checkpoint stays."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """The results of a run: its model, its last loss and scale, and its validations at the start and at the best."""

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
        """The report as JSON-ready data."""
        return asdict(self)


def train(settings: RunSettings, on_row: OnRow = lambda row: None) -> TrainReport:
    """Train, or resume training, and write the best model.

    Args:
        settings: the run.
        on_row: called with each log row as it arrives.

    Raises:
        ValueError: the model, the tables and the settings do not fit together, or the folder holds another run.
        TrainingDivergedError: the loss is not a finite number.
        OSError: a checkpoint cannot be written; the previous one is valid.
    """
    started = time.perf_counter()
    work = plan_work(settings)
    resumed = claim_run(settings.folder, describe_run(settings, work))
    session.ensure_ray()
    session.configure_data_context(progress=False)
    before = settings.folder.load(LATEST) if resumed else None
    warnings: list[str] = []
    if before is None or not before["finished"]:
        execute(settings, work, lambda row: _show(row, warnings, on_row))
    state = settings.folder.load(LATEST)
    assert state is not None
    if not state["finished"]:
        _raise_if_diverged(settings)
    history = json.loads(state["history"])
    best = settings.folder.load(BEST)
    model = save_model(
        work.settings.model,
        best if best is not None else state["model"],
        settings.out,
        _story(settings, work),
        settings.folder.storage,
    )
    pages = write_logs(settings.folder, history)
    return _report(settings, work, history, state, warnings, pages, model, before, time.perf_counter() - started)


def _show(row: Row, warnings: list[str], on_row: OnRow) -> None:
    if "warning" in row:
        warnings.append(row["warning"])
    on_row(row)


def _raise_if_diverged(settings: RunSettings) -> None:
    raw = settings.folder.read(DIVERGED)
    if raw is None:
        return
    said = json.loads(raw)
    rows = open_dataset(settings.samples).take(said["offsets"], columns=[ROW_ID])[ROW_ID].to_pylist()
    settings.folder.write(DIVERGED, json.dumps({**said, "row_ids": rows}).encode())
    shown = ", ".join(map(str, rows[:_SHOWN_ROWS])) + (" …" if len(rows) > _SHOWN_ROWS else "")
    raise TrainingDivergedError(
        f"step {said['step']}: {said['problem']}; rows of the batch: {shown} (all in "
        f"{settings.folder.path(DIVERGED)}). The previous checkpoint is intact; check the rows, lower --learning-rate, "
        "and start a new run"
    )


def _story(settings: RunSettings, work: Work) -> Row:
    """The record that is written beside the weights: the run's description and its numbers of rows."""
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
