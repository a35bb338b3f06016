"""The function that Ray Train runs in each training process.

It is light to import: Ray's controller imports it too, and needs no torch.
"""

from __future__ import annotations

from typing import Any


def train_process(config: dict[str, Any]) -> None:
    """Train as one process of a run.

    Args:
        config: `work` is a Ray reference to the run's `Work`.
    """
    import ray
    import ray.train
    from ray.train.torch import get_device

    from pipelines.train.finetuning.loop import Trainer, Work

    context = ray.train.get_context()
    work: Work = ray.get(config["work"])
    process = Trainer(work, context.get_world_rank(), context.get_world_size(), get_device())
    process.run()
    ray.train.report({"step": process.step, "best": process.best})
