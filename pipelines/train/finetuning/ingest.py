"""The stream of batches of one process: by Ray Data if pictures are decoded, from memory if everything fits.

In Ray Data, a row of the dataset is a step: CPU tasks load the process's share of it, in order, a few steps ahead.
Nothing is split while the run goes on, so no process can run out of batches before the others.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.train.finetuning.batches import BatchPlan, SequentialPlan
from pipelines.train.finetuning.loading import Arrays, Needs, load

_STEPS_AHEAD = 2
_STEPS_PER_DATASET = 2_000
_BYTES_AHEAD = 1 << 30
_PAYLOAD = "batch"


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one process trains on.

    Attributes:
        plan: the batches.
        needs: what the batches hold.
        offsets: int64, offsets of the training rows in their table.
        teacher_offsets: int64, offsets of the same rows in the teacher's table; None without a teacher.
        rank: rank of the process.
        world: number of processes.
        augmented: whether pictures are augmented.
    """

    plan: BatchPlan | SequentialPlan
    needs: Needs
    offsets: NDArray[np.int64]
    teacher_offsets: NDArray[np.int64] | None
    rank: int
    world: int
    augmented: bool = True

    def load(self, step: int) -> Arrays:
        """This process's share of a step."""
        places = self.plan.share(step, self.rank, self.world)
        teacher = None if self.teacher_offsets is None else self.teacher_offsets[places]
        return load(self.needs, self.offsets[places], teacher, step if self.augmented else -1)


def stream(share: Share, first_step: int, *, tasks: int, task_cpus: float = 1.0) -> Iterator[Arrays]:
    """The shares of the steps from `first_step` on, loaded ahead of use by Ray Data tasks.

    Args:
        share: what to load.
        first_step: the first step to load.
        tasks: the most tasks at once.
        task_cpus: logical CPUs of each task.
    """
    import ray

    held = ray.put(share)
    for start in range(first_step, share.plan.steps, _STEPS_PER_DATASET):
        steps = min(_STEPS_PER_DATASET, share.plan.steps - start)
        yield from _execute(held, start, steps, tasks, task_cpus)


def _execute(share: Any, start: int, steps: int, tasks: int, task_cpus: float) -> Iterator[Arrays]:
    import ray
    from ray.data import DataContext, ExecutionResources, TaskPoolStrategy

    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(
        cpu=tasks * task_cpus, object_store_memory=_BYTES_AHEAD
    )
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A step is a block: it is never merged with the next, and is visible as soon as it is complete.
    context.target_max_block_size = 1
    loaded = ray.data.range(steps, override_num_blocks=steps).map_batches(
        _load_step,  # type: ignore[arg-type]
        fn_kwargs={"share": share, "start": start},
        batch_size=1,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=tasks),
        num_cpus=task_cpus,
    )
    for batch in loaded.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=_STEPS_AHEAD):
        yield pickle.loads(batch[_PAYLOAD][0].as_buffer())


def _load_step(row: pa.Table, share: Any, start: int) -> pa.Table:
    import ray

    found: Share = ray.get(share) if isinstance(share, ray.ObjectRef) else share
    payload = pickle.dumps(found.load(start + row["id"][0].as_py()), protocol=5)
    return pa.table({_PAYLOAD: pa.array([payload], pa.large_binary())})


class Resident:
    """Everything that the training rows need, held in memory: for towers whose features come from the table."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self.everything = load(share.needs, share.offsets, share.teacher_offsets, -1)

    def stream(self, first_step: int) -> Iterator[Arrays]:
        """The shares of the steps from `first_step` on."""
        for step in range(first_step, self._share.plan.steps):
            places = self._share.plan.share(step, self._share.rank, self._share.world)
            yield {name: _pick(values, places) for name, values in self.everything.items()}


def resident_bytes(share: Share, dims: int) -> int | None:
    """Bytes that a `Resident` would hold, at 4 bytes per dimension and 400 per row; None if it would hold pictures."""
    return None if not share.needs.image_features else len(share.offsets) * (4 * dims + 400)


def _pick(values: Any, places: NDArray[np.int64]) -> Any:
    return values[places] if isinstance(values, np.ndarray) else [values[i] for i in places]
