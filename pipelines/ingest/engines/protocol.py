"""The protocol of an engine, which runs the stages over the remaining work and fills the commit queue."""

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

# Number of staging tasks that the driver keeps running on Ray at a time.
STAGES_IN_FLIGHT = 2


class WorkersDiedError(RuntimeError):
    """Worker processes died one after the other. What was committed is kept, and another engine can do the rest."""


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
    """How an engine did its work.

    Attributes:
        engine: the engine's name.
        cores: number of CPU cores.
        actors: number of encode actors or worker processes.
        read_tasks: number of read tasks.
        gpus: number of GPUs of all actors.
    """

    engine: Literal["ray", "process", "probe"]
    cores: int
    actors: int
    read_tasks: int
    gpus: float = 0.0

    @property
    def workers(self) -> dict[str, int]:
        """Stage → number of its workers. A stage that is not named has one worker."""
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
        """Plan how to run the work.

        Args:
            work: shards that are not settled yet, in corpus order.
            block_rows: the most rows in a block.

        Raises:
            ValueError: more actors or GPUs were requested than exist.
        """
        ...

    def run(self, stages: Stages, work: list[ShardWork], queue: CommitQueue, progress: Callable[[int], None]) -> Ran:
        """Run the stages over all of the work, and commit it.

        Args:
            stages: the settings of each stage.
            work: shards that are not settled yet, in corpus order.
            queue: receives the staged groups and commits them.
            progress: called with the number of rows in the queue and on their way to it.

        Raises:
            WorkersDiedError: too many worker processes died. What was committed is kept.
            OSError: a store failed, in any process.
            Exception: a stage raised it.
        """
        ...
