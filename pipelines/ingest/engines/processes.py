"""The stages in processes beside the driver, one a core: what one machine does without Ray.

Each process does what Ray's tasks and actors do, with the same functions on the same blocks, one after the other, and
hands staged groups to the driver, which commits them. They ask the driver for work, portion by portion, so that they
end together. They are processes of their own since decoders are C code that reads hostile bytes: if one dies, another
one takes its place. What it did not stage is still to do, for another one or for Ray.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from pipelines.cluster import machine
from pipelines.cluster.resources import Resources
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.engines.early import Reserve, Started, start
from pipelines.ingest.engines.job import EmbedJob, Ran
from pipelines.ingest.engines.portions import left_of, portions
from pipelines.ingest.engines.worker import Encoded, Failure, Signal, WorkerTask
from pipelines.ingest.incremental import expected_rows
from pipelines.ingest.planning import plan_pools
from pipelines.ingest.sink.ledger import Ledger
from pipelines.ingest.sink.queueing import CommitQueue
from pipelines.ingest.sink.staging import StagedGroup
from pipelines.ingest.stage_settings import decode_settings, encode_settings, read_settings
from pipelines.ingest.stages.reading import ShardWork
from pipelines.ingest.stages.reuse import known_vectors

log = logging.getLogger(__name__)
_LAST_WORDS = 2_000
# With Ray behind them, a second death is reason enough to leave the rest to Ray.
_DEATHS, _DEATHS_ALONE = 2, 5
# So many blocks for each process, where there are rows enough: at the end they wait for one another for less than one.
_BLOCKS_EACH, _LEAST_BLOCK_ROWS = 16, 64


def this_machine() -> Resources:
    """The cores that this process may use. GPUs are Ray's to share out."""
    return Resources(cpus=machine.cores(), gpus=0.0)


def fits_this_machine(settings: EmbedSettings) -> bool:
    """Whether a run needs no Ray: there is no cluster, and no GPU to share out.

    Args:
        settings: of the run. Who asks for actors or GPUs gets Ray, and so does who has a cluster.
    """
    asks = bool(settings.actors or settings.gpus_per_actor or settings.actor_memory_bytes)
    return machine.needs_no_ray(settings.engine, settings.options.device, asks=asks)


def run_stages(
    job: EmbedJob,
    work: list[ShardWork],
    ledger: Ledger,
    queue: CommitQueue,
    progress: Callable[[int], None],
    reserve: Reserve | None = None,
) -> Ran | None:
    """Run the stages over the work, in a process a core, and commit what they stage.

    Args:
        job: the run.
        work: what is left of it.
        ledger: knows what is committed.
        queue: commits what is staged.
        progress: called with the rows of the queue, and those that are on their way there.
        reserve: processes that were started already; those that the work has no use for are dismissed.

    Returns:
        None if Ray should do the rest.

    Raises:
        RuntimeError: too many of the processes died, and Ray is not to be used.
        Exception: what a stage raised.
    """
    rows = expected_rows(work)
    count = _processes(rows, queue.limits.block_rows)
    task = _task(job, work, queue, count)
    with WorkerPool(
        task, deque(portions(work, count, task.read.block_rows, task.read.block_bytes)), count, reserve
    ) as crew:
        done = _commit_all(crew, ledger, queue, progress, alone=job.settings.engine == "process")
    return Ran(engine="process", cores=machine.cores(), actors=count, read_tasks=count) if done else None


def _processes(rows: int | None, block_rows: int) -> int:
    """One a core, and no more than there are blocks, which are small where there are few rows: each process loads the
    encoder."""
    least = min(block_rows, _LEAST_BLOCK_ROWS)
    return machine.cores() if rows is None else max(1, min(machine.cores(), math.ceil(rows / least)))


def _task(job: EmbedJob, work: list[ShardWork], queue: CommitQueue, count: int) -> WorkerTask:
    settings, description = job.settings, job.description
    read = read_settings([item.shard.uri for item in work], description, settings, job.schema, queue.limits.block_rows)
    rows = expected_rows(work)
    if settings.block_rows is None and rows is not None:
        even = max(_LEAST_BLOCK_ROWS, rows // (_BLOCKS_EACH * count))
        read = replace(read, block_rows=min(read.block_rows, even))
    return WorkerTask(
        source=job.source,
        read=read,
        decode=decode_settings(description, settings),
        encode=encode_settings(description, settings, plan_pools(this_machine(), actors=count)),
        storage=settings.corpus_storage,
        known=known_vectors(job.table, settings),
        table=job.table,
        schema=job.schema,
        files=job.files,
        limits=queue.limits,
        group_rows=queue.group_rows,
    )


def _commit_all(
    crew: WorkerPool, ledger: Ledger, queue: CommitQueue, progress: Callable[[int], None], *, alone: bool
) -> bool:
    """Commit what the crew stages until all is done; False if Ray should do the rest.

    Raises:
        RuntimeError: too many processes died, and Ray is not to be used.
        Exception: what a stage raised.
    """
    deaths = before = 0
    for process, message in crew.messages():
        if isinstance(message, StagedGroup):
            queue.add(message)
            process.coming = 0
        elif isinstance(message, Encoded):
            process.coming += message.rows
            progress(queue.rows + crew.coming)
        elif isinstance(message, Failure):
            raise message.error
        elif message is Signal.DIED:
            queue.commit()
            # Alone, they go on as long as some rows get done.
            deaths = 1 if alone and queue.rows > before else deaths + 1
            before = queue.rows
            if deaths == (_DEATHS_ALONE if alone else _DEATHS):
                return _give_up(process.last_words(), alone=alone)
            log.warning("a process that embeds died (%s); another one goes on", process.last_words())
            crew.replace(process, left_of(process.given, ledger.coverage))
        queue.commit_if_due()
    queue.commit()
    progress(queue.rows)
    return True


def _give_up(last_words: str, *, alone: bool) -> bool:
    """What happens when processes die one after the other: Ray goes on, if it may.

    Raises:
        RuntimeError: it may not.
    """
    if not alone:
        log.warning("two processes that embed died (%s); Ray goes on", last_words)
        return False
    raise RuntimeError(
        f"engine 'process': {_DEATHS_ALONE} processes died one after the other ({last_words}). "
        "What is committed is kept; mend the cause, or let Ray do it, and run again"
    )


class WorkerPool:
    """The processes, and the work that none of them has yet. Use it as a context: all of them end with it."""

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
        """Rows that were encoded and are not staged yet."""
        return sum(process.coming for process in self._running)

    def messages(self) -> Iterator[tuple[WorkerProcess, Any]]:
        """What the processes say, until all of them are done; who asks for work gets some on the way."""
        while self._running:
            process, message = self._inbox.get()
            if message is Signal.MORE:
                process.give(self._pending.popleft() if self._pending else [])
                continue
            if message is Signal.FINISHED:
                self._running.remove(process)
            yield process, message

    def replace(self, process: WorkerProcess, left: list[ShardWork]) -> None:
        """Another process in place of one that died, which left some of its work undone."""
        self._running.remove(process)
        self._pending.extendleft([item] for item in reversed(left))
        self._start()

    def _start(self, started: Started | None = None) -> None:
        started = started or start(self._task.encode.spec)
        self._running.append(self._open.enter_context(WorkerProcess(started, self._task, self._inbox)))


class WorkerProcess:
    """One of the processes.

    Args:
        started: that one, which waits for its task.
        task: what it needs to know.
        inbox: where what it says goes, beside itself; `Signal.DIED` after its last word, if it had more to say.

    Attributes:
        coming: rows that it encoded and did not stage yet.
        given: the work that it got.
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
        """Some work; none means that there is no more."""
        self.given += portion
        self._send(portion)

    def last_words(self) -> str:
        """How the process ended, and the end of what it said; for a log."""
        code, file = self._started.process.wait(), self._started.said
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LAST_WORDS))
        said = file.read().decode(errors="replace").strip()
        return f"it ended by signal {-code}" if code < 0 else f"it ended with code {code}: {said}"

    def _send(self, message: Any) -> None:
        """To one that died nothing can be said; that it did, its listener finds out."""
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(message, self._started.inbox)
            self._started.inbox.flush()

    def _talk(self, task: WorkerTask, inbox: SimpleQueue[tuple[WorkerProcess, Any]]) -> None:
        """Hand over the task, which waits for the other side's imports, and pass on what it says until its end."""
        self._send(task)
        message: Any = None
        while message is not Signal.FINISHED and not isinstance(message, Failure):
            try:
                message = pickle.load(self._started.outbox)
            except (EOFError, pickle.UnpicklingError):
                inbox.put((self, Signal.DIED))
                return
            inbox.put((self, message))
