"""The engine that runs the stages in worker processes on one machine, one for each core, without Ray.

Each worker process does what Ray's tasks and actors do, with the same functions on the same blocks, one block after the
other. It hands staged groups to the driver, which commits them. Worker processes ask the driver for work, portion by
portion, so that they end together. They are separate processes because decoders are C code that reads hostile bytes. If
one dies, another one takes its place and repeats the work that was not staged.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from pipelines.cluster import machine
from pipelines.cluster.resources import Resources
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.engines.early import Reserve, Started, start
from pipelines.ingest.engines.portions import left_of, portions
from pipelines.ingest.engines.protocol import EnginePlan, Ran, WorkersDiedError
from pipelines.ingest.engines.worker import Encoded, Failure, Signal, WorkerTask
from pipelines.ingest.incremental import expected_rows
from pipelines.ingest.planning import plan_pools
from pipelines.ingest.sink.queueing import CommitQueue
from pipelines.ingest.sink.staging import StagedGroup
from pipelines.ingest.stages.pipeline import Stages
from pipelines.ingest.stages.reading import ShardWork

log = logging.getLogger(__name__)
_LAST_WORDS = 2_000
# If Ray can take over, it does so after the second death.
_DEATHS, _DEATHS_ALONE = 2, 5
# Blocks for each process, if there are enough rows: at the end, processes wait for each other for less than one block.
_BLOCKS_EACH, _LEAST_BLOCK_ROWS = 16, 64


def fits_this_machine(settings: EmbedSettings) -> bool:
    """Whether a run uses worker processes: no cluster is available, and there are no GPUs to divide.

    Args:
        settings: the settings of the run. A run that asks for actors or GPUs uses Ray.
    """
    asks = bool(settings.actors or settings.gpus_per_actor or settings.actor_memory_bytes)
    return machine.needs_no_ray(settings.engine, settings.options.device, asks=asks)


class ProcessEngine:
    """Runs the stages in worker processes beside the driver, one for each core.

    Args:
        settings: the settings of the run.
        reserve: processes that were started early. Those that the work does not need are dismissed.
    """

    def __init__(self, settings: EmbedSettings, reserve: Reserve | None = None) -> None:
        self._settings = settings
        self._reserve = reserve

    def resources(self) -> Resources:
        """The cores that this process may use, and no GPUs: only Ray divides GPUs."""
        return Resources(cpus=machine.cores(), gpus=0.0)

    def plan(self, work: Sequence[ShardWork], block_rows: int) -> EnginePlan:
        """See `Engine.plan`. Blocks are smaller if there are few rows, so that the processes end together."""
        rows = expected_rows(work)
        count = _processes(rows, block_rows)
        if self._settings.block_rows is None and rows is not None:
            block_rows = min(block_rows, max(_LEAST_BLOCK_ROWS, rows // (_BLOCKS_EACH * count)))
        return EnginePlan(pools=plan_pools(self.resources(), actors=count), block_rows=block_rows)

    def run(self, stages: Stages, work: list[ShardWork], queue: CommitQueue, progress: Callable[[int], None]) -> Ran:
        """See `Engine.run`."""
        count = stages.pools.actors
        task = WorkerTask(stages=stages, group_rows=queue.group_rows, interval_s=queue.limits.commit_interval_s)
        pending = deque(portions(work, count, stages.reading.block_rows, stages.reading.block_bytes))
        with WorkerPool(task, pending, count, self._reserve) as pool:
            _commit_all(pool, queue, progress, alone=self._settings.engine == "process")
        return Ran(engine="process", cores=machine.cores(), actors=count, read_tasks=count)


def _processes(rows: int | None, block_rows: int) -> int:
    """Number of processes: one for each core, but no more than blocks, because each process loads the encoder."""
    least = min(block_rows, _LEAST_BLOCK_ROWS)
    return machine.cores() if rows is None else max(1, min(machine.cores(), math.ceil(rows / least)))


def _commit_all(pool: WorkerPool, queue: CommitQueue, progress: Callable[[int], None], *, alone: bool) -> None:
    """Commit what the worker processes stage until all is done.

    Args:
        pool: the worker processes.
        queue: receives the staged groups and commits them.
        progress: called with the number of rows that are staged or encoded.
        alone: whether no other engine may take over. If so, deaths are counted anew once more rows are staged.

    Raises:
        WorkersDiedError: too many processes died.
        Exception: what a stage raised.
    """
    deaths = before = 0
    for process, message in pool.messages():
        if isinstance(message, StagedGroup):
            queue.add(message)
            process.coming = 0
        elif isinstance(message, Encoded):
            process.coming += message.rows
            progress(queue.rows + pool.coming)
        elif isinstance(message, Failure):
            raise message.error
        elif message is Signal.DIED:
            queue.commit()
            deaths = 1 if alone and queue.rows > before else deaths + 1
            before = queue.rows
            if deaths == (_DEATHS_ALONE if alone else _DEATHS):
                raise WorkersDiedError(
                    f"engine 'process': {deaths} worker processes died one after the other ({process.last_words()}). "
                    "What was committed is kept. Fix the cause, or use --engine ray, and run the same command again"
                )
            log.warning("a worker process died (%s); another one takes its place", process.last_words())
            pool.replace(process, left_of(process.given, queue.coverage))
        queue.commit_if_due()
    queue.commit()
    progress(queue.rows)


class WorkerPool:
    """The worker processes, and the work that none of them has yet.

    It is a context manager: on exit, all processes end.
    """

    def __init__(
        self, task: WorkerTask, pending: deque[list[ShardWork]], count: int, reserve: Reserve | None = None
    ) -> None:
        self._task = task
        self._pending = pending
        self._inbox: SimpleQueue[tuple[WorkerProcess, Any]] = SimpleQueue()
        self._running: list[WorkerProcess] = []
        self._open = contextlib.ExitStack()
        for _ in range(count):
            self._start(reserve.take() if reserve else None)
        if reserve:
            reserve.dismiss()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def coming(self) -> int:
        """Number of rows that are encoded and not staged yet."""
        return sum(process.coming for process in self._running)

    def messages(self) -> Iterator[tuple[WorkerProcess, Any]]:
        """Messages of the processes, until all are done. A process that asks for work gets the next portion."""
        while self._running:
            process, message = self._inbox.get()
            if message is Signal.MORE:
                process.give(self._pending.popleft() if self._pending else [])
                continue
            if message is Signal.FINISHED:
                self._running.remove(process)
            yield process, message

    def replace(self, process: WorkerProcess, left: list[ShardWork]) -> None:
        """Start a process in place of one that died, and put its unfinished work first in line."""
        self._running.remove(process)
        self._pending.extendleft([item] for item in reversed(left))
        self._start()

    def _start(self, started: Started | None = None) -> None:
        started = started or start(self._task.stages.encoding.spec)
        self._running.append(self._open.enter_context(WorkerProcess(started, self._task, self._inbox)))


class WorkerProcess:
    """One worker process, as the driver sees it.

    Args:
        started: the process, which waits for its task.
        task: the task to hand over.
        inbox: receives (this object, message) for each message. `Signal.DIED` follows if the process ends too early.

    Attributes:
        coming: number of rows that the process has encoded and not staged yet.
        given: the work that the process got.
    """

    def __init__(self, started: Started, task: WorkerTask, inbox: SimpleQueue[tuple[WorkerProcess, Any]]) -> None:
        self.coming = 0
        self.given: list[ShardWork] = []
        self._started = started
        self._listener = threading.Thread(target=self._talk, args=(task, inbox), daemon=True)
        self._listener.start()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._started.end(last=self._listener.join)

    def give(self, portion: list[ShardWork]) -> None:
        """Give the process some work. An empty portion means that no work is left."""
        self.given += portion
        self._send(portion)

    def last_words(self) -> str:
        """How the process ended, with the last 2,000 bytes of its standard error, for a log."""
        code, file = self._started.process.wait(), self._started.said
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LAST_WORDS))
        said = file.read().decode(errors="replace").strip()
        return f"it ended by signal {-code}" if code < 0 else f"it ended with code {code}: {said}"

    def _send(self, message: Any) -> None:
        """Send a message. If the process has died, the listener thread notices."""
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(message, self._started.inbox)
            self._started.inbox.flush()

    def _talk(self, task: WorkerTask, inbox: SimpleQueue[tuple[WorkerProcess, Any]]) -> None:
        """Hand over the task, which blocks until the process has done its imports; then pass on its messages."""
        self._send(task)
        message: Any = None
        while message is not Signal.FINISHED and not isinstance(message, Failure):
            try:
                message = pickle.load(self._started.outbox)
            except (EOFError, pickle.UnpicklingError):
                inbox.put((self, Signal.DIED))
                return
            inbox.put((self, message))
