"""The stream of batches of one process: through Ray Data where pictures are decoded, from memory where all fits.

Through Ray Data, a row of the dataset is a step: CPU tasks load the process' share of it, in order, a few steps
ahead. Nothing is split at run
time, so no process can run dry before the others.
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
    """What a process trains on.

    Attributes:
        plan: the batches.
        needs: what they hold.
        offsets: int64, the training rows in their table.
        teacher_offsets: int64, the same rows in the teacher's.
        rank: of the process.
        world: processes.
        augmented: whether pictures are changed at random.
    """

    plan: BatchPlan | SequentialPlan
    needs: Needs
    offsets: NDArray[np.int64]
    teacher_offsets: NDArray[np.int64] | None
    rank: int
    world: int
    augmented: bool = True

    def load(self, step: int) -> Arrays:
        """The process' share of a step."""
        places = self.plan.share(step, self.rank, self.world)
        teacher = None if self.teacher_offsets is None else self.teacher_offsets[places]
        return load(self.needs, self.offsets[places], teacher, step if self.augmented else -1)


def stream(share: Share, first_step: int, *, tasks: int, task_cpus: float = 1.0) -> Iterator[Arrays]:
    """The shares of the steps from `first_step` on, loaded by Ray Data tasks ahead of their use.

    Args:
        share: what to load.
        first_step: where to begin.
        tasks: most tasks at once.
        task_cpus: logical CPUs of each.
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
    # A step is a block: never merged with the next, and seen as soon as it is there.
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
    """All that the training rows need, held in memory: for towers that are cached as features."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self.everything = load(share.needs, share.offsets, share.teacher_offsets, -1)

    def stream(self, first_step: int) -> Iterator[Arrays]:
        """As `stream`."""
        for step in range(first_step, self._share.plan.steps):
            places = self._share.plan.share(step, self._share.rank, self._share.world)
            yield {name: _pick(values, places) for name, values in self.everything.items()}


def resident_bytes(share: Share, dims: int) -> int | None:
    """Bytes that holding everything would take, None where pictures would be held."""
    return None if not share.needs.image_features else len(share.offsets) * (4 * dims + 400)


def _pick(values: Any, places: NDArray[np.int64]) -> Any:
    return values[places] if isinstance(values, np.ndarray) else [values[i] for i in places]
