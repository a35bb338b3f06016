"""Training in stages: before every stage but the first, the current model mines new hard negatives.

This is ANCE, Xiong et al. 2021, with one round of mining per stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from encoders.registry import describe
from pipelines.store.storage import TableRef, is_remote
from pipelines.tables.opening import open_dataset
from pipelines.train.finetuning.checkpoints import RunFolder
from pipelines.train.finetuning.finetune import TrainReport, train
from pipelines.train.finetuning.projecting import project_table
from pipelines.train.finetuning.train_settings import RunSettings
from pipelines.train.mining.mine import mine
from pipelines.train.mining.mined import read_mined
from pipelines.train.mining.mining_settings import MiningSettings


def train_with_remining(settings: RunSettings, every: int, on_row: Callable[[dict[str, Any]], None]) -> TrainReport:
    """Train in stages of `every` epochs. Each stage is a separate run that starts from the previous stage's model.

    Args:
        settings: settings of the whole run, without negatives.
        every: epochs per stage.
        on_row: called with each row of the training log.

    Returns:
        The report of the last stage, whose model is at `settings.out`.

    Raises:
        ValueError: `settings.out` is not on a disk, so the next stage could not start from it.
    """
    if is_remote(settings.out):
        raise ValueError(
            f"out {settings.out!r}: with remine_every, each stage starts from a model on a disk; give a path"
        )
    stages = math.ceil(settings.epochs / every)
    stage_settings = settings
    for stage in range(stages - 1):
        out = f"{settings.folder.uri}/stage{stage}"
        stage_settings = replace(
            stage_settings, epochs=every, out=out, folder=RunFolder(uri=f"{out}.run", storage=settings.folder.storage)
        )
        train(stage_settings, on_row)
        stage_settings = _from_model(stage_settings, out, _mined(settings.samples, out))
    last = replace(
        stage_settings, epochs=settings.epochs - every * (stages - 1), out=settings.out, folder=settings.folder
    )
    return train(last, on_row)


def _from_model(settings: RunSettings, model: str, negatives: TableRef) -> RunSettings:
    """The settings of the stage that starts from a model and uses the negatives that this model mined."""
    training = settings.train
    start = replace(training.model, spec=describe(model).card.spec, start="random")
    return replace(settings, train=replace(training, model=start), negatives=negatives)


def _mined(samples: TableRef, model: str) -> TableRef:
    """Negatives that a model mines among the training rows, kept in the run's folder so that runs do not share them.

    Negatives already mined from this very table are kept: mining again would make the next stage a different run.
    """
    vectors = TableRef.parse(f"{model}_vectors", samples.storage)
    mined = vectors.sibling("mined")
    version = project_table(samples, model, vectors)
    if not _is_mined_from(vectors, version, mined):
        mine(vectors, mined, MiningSettings())
    return mined


def _is_mined_from(vectors: TableRef, version: int, mined: TableRef) -> bool:
    if open_dataset(mined, missing_ok=True) is None:
        return False
    found = read_mined(mined)
    return (found.table, found.table_version) == (str(vectors), version)
