"""What an engine is: it runs the stages over the work that is left, and hands staged groups to the commit queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipelines.cluster.resources import Resources
from pipelines.ingest.sink.queueing import CommitQueue
from pipelines.ingest.stages.pipeline import Stages
from pipelines.ingest.stages.pools import PoolPlan
from pipelines.ingest.stages.reading import ShardWork
from pipelines.rows.pace import StageWorkers

# Staging tasks that the driver keeps running on Ray at a time.
STAGES_IN_FLIGHT = 2


class WorkersDiedError(RuntimeError):
    """Worker processes died one after the other. What was committed is kept; another engine can do the rest."""


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """How an engine will run some work.

    Attributes:
        pools: encode actors or worker processes, and the cores and GPUs of each.
        block_rows: rows of a block.
    """

    pools: PoolPlan
    block_rows: int


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How an engine did its work: cores, encode actors, their GPUs, and tasks that read."""

    engine: Literal["ray", "process", "probe"]
    cores: int
    actors: int
    read_tasks: int
    gpus: float = 0.0

    @property
    def workers(self) -> dict[str, int]:
        """Stage → how many of it run at a time. A stage that is not named runs one at a time."""
        if self.engine == "ray":
            return {"read": self.cores, "decode": self.cores, "encode": self.actors, "stage": STAGES_IN_FLIGHT}
        return dict.fromkeys(("read", "decode", "encode", "stage"), self.actors)

    @property
    def stage_workers(self) -> StageWorkers:
        """How many workers decode and encode. With GPUs each actor holds one CPU, and the other CPUs decode."""
        decoders = max(1, self.cores - self.actors) if self.gpus else 0
        return StageWorkers(encoders=self.actors, decoders=decoders, gpus=self.gpus)


class Engine(Protocol):
    """Runs the stages: worker processes, Ray Data, or the probe of `isthmus plan`."""

    def resources(self) -> Resources:
        """Cores and GPUs that the engine can use. On Ray this starts or joins a cluster."""
        ...

    def plan(self, work: Sequence[ShardWork], block_rows: int) -> EnginePlan:
        """How the work would be run.

        Args:
            work: shards that are not settled yet, in corpus order.
            block_rows: the most rows of a block.

        Raises:
            ValueError: actors or GPUs were asked for that are not there.
        """
        ...

    def run(self, stages: Stages, work: list[ShardWork], queue: CommitQueue, progress: Callable[[int], None]) -> Ran:
        """Run the stages over all of the work, and commit it.

        Args:
            stages: what each stage needs.
            work: shards that are not settled yet, in corpus order.
            queue: commits what is staged.
            progress: called with the rows in the queue and those on their way there.

        Raises:
            WorkersDiedError: too many worker processes died. What was committed is kept.
            OSError: a store failed, in any process.
            Exception: what a stage raised.
        """
        ...
