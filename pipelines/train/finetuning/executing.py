"""Runs planned training on Ray Train, and passes on its log meanwhile."""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipelines.cluster import session
from pipelines.train.finetuning.board import Board
from pipelines.train.finetuning.loop import Work
from pipelines.train.finetuning.process import train_process
from pipelines.train.finetuning.train_settings import RunSettings

Row = dict[str, Any]
OnRow = Callable[[Row], None]
_POLL_S = 0.2


def execute(settings: RunSettings, work: Work, on_row: OnRow) -> None:
    """Train on Ray Train, and pass each log row to `on_row` as it arrives."""
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    cores = session.cluster_resources()
    if settings.use_gpu and cores.gpus < settings.workers:
        raise ValueError(f"workers {settings.workers}: the cluster has {cores.gpus:g} GPUs; give fewer, or --no-gpus")
    board = ray.remote(Board).options(num_cpus=0).remote()
    held = ray.put(replace(work, board=board, task_cpus=worker_cpus(cores.cpus, settings.workers)))
    with tempfile.TemporaryDirectory(prefix="isthmus-train-") as scratch:
        trainer = TorchTrainer(
            train_process,
            train_loop_config={"work": held},
            scaling_config=ray.train.ScalingConfig(
                num_workers=settings.workers, use_gpu=settings.use_gpu, resources_per_worker=_resources(settings)
            ),
            run_config=ray.train.RunConfig(
                # A unique name: Ray would silently resume a run with an old name from its own checkpoints.
                name=f"isthmus-{uuid.uuid4().hex[:12]}",
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=settings.failures),
            ),
        )
        _fit(trainer, board, on_row)


def _resources(settings: RunSettings) -> dict[str, float]:
    """What each process requests: on a small machine less than a core, so that its loading tasks also find one."""
    cores = session.cluster_resources().cpus
    return {"CPU": worker_cpus(cores, settings.workers), **({"GPU": 1} if settings.use_gpu else {})}


def worker_cpus(cores: float, workers: int) -> float:
    """Logical CPUs of a training process, and of a loading task beside it: half a share each, at most 1.

    >>> [worker_cpus(cores, 2) for cores in (1, 2, 64)]
    [0.25, 0.5, 1.0]
    """
    return min(1.0, cores / workers / 2)


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
    """The error that a worker raised, extracted from Ray Train's wrappers."""
    inner = getattr(error, "worker_failures", None)
    if inner:
        first = next(iter(inner.values()))
        return _cause(first)
    cause = getattr(error, "cause", None) or getattr(error, "_cause", None)
    return _cause(cause) if isinstance(cause, BaseException) and cause is not error else error
