"""The stages in one process beside the driver, for runs that Ray's start would cost more than.

The process does what Ray's tasks and actors do, with the same functions on the same blocks, one after the other, and
hands staged groups to the driver, which commits them. It is a process of its own since decoders are C code that reads
hostile bytes: if it dies, the driver goes on. What it did not stage is still to do, for another one or for Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pipelines.embedding.engines import worker
from pipelines.embedding.engines.job import Job, Ran
from pipelines.embedding.engines.worker import End, Failure, Rows, Task
from pipelines.embedding.incremental import expected_rows, remaining
from pipelines.embedding.planning import Resources, plan_pools
from pipelines.embedding.settings import EmbedSettings
from pipelines.embedding.stages.reading import ShardWork
from pipelines.embedding.stages.reuse import known_vectors
from pipelines.embedding.stages.settings import decode_settings, encode_settings, read_settings
from pipelines.sink.ledger import Ledger
from pipelines.sink.queueing import CommitQueue, SinkLimits
from pipelines.sink.staging import StagedGroup

log = logging.getLogger(__name__)
# Ray and its workers take about this long to start and to end.
PATIENCE_S = 10.0
TRIAL_S = 2.0
_FEW_ROWS = 50_000
_LAST_WORDS = 2_000
# With Ray behind it, a second death is reason enough to leave it to Ray.
_DEATHS, _DEATHS_ALONE = 2, 5
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_CLUSTER = "/tmp/ray/ray_current_cluster"


def this_machine() -> Resources:
    """The cores that this process may use. GPUs are Ray's to share out."""
    return Resources(cpus=_cores(), gpus=0.0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_small(rows: int | None, settings: EmbedSettings) -> bool:
    """Whether a run might be done here before Ray would have begun.

    Args:
        rows: records to do, None where the listing does not tell.
        settings: of the run. Who asks for actors or GPUs gets Ray, and so does who has a cluster.
    """
    if settings.engine != "auto":
        return settings.engine == "process"
    if rows is None or rows > _FEW_ROWS:
        return False
    asks = settings.actors or settings.gpus_per_actor or settings.actor_memory_bytes
    return not asks and not _has_ray() and (settings.options.device == "cpu" or not _has_gpu())


def _has_ray() -> bool:
    """Whether Ray runs already, or a cluster's is meant; looked up without importing it, which takes a second."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return True
    return os.environ.get("RAY_ADDRESS", "local") != "local" or Path(_CLUSTER).exists()


def _has_gpu() -> bool:
    return any(Path(device).exists() for device in _GPUS)


def run_stages(
    job: Job, work: list[ShardWork], ledger: Ledger, queue: CommitQueue, progress: Callable[[int], None]
) -> Ran | None:
    """Run the stages over the work, in one process after the other if need be, and commit what they stage.

    Args:
        job: the run.
        work: what is left of it.
        ledger: knows what is committed.
        queue: commits what is staged.
        progress: called with the rows of the queue, and those that are on their way there.

    Returns:
        None if Ray should do the rest.

    Raises:
        RuntimeError: too many of the processes died, and Ray is not to be used.
        Exception: what a stage raised.
    """
    alone = job.settings.engine == "process"
    deaths = 0
    while True:
        before = queue.rows
        with OneProcess() as process:
            end = process.run(_task(job, work, queue.limits), queue, progress)
            if end is End.FINISHED:
                return Ran(engine="process", cores=_cores(), actors=1, read_tasks=1)
            if end is End.TOO_MUCH:
                return None
            last_words = process.last_words()
        # Alone, it goes on as long as each process gets some rows done.
        deaths = 1 if alone and queue.rows > before else deaths + 1
        if deaths == (_DEATHS_ALONE if alone else _DEATHS):
            break
        log.warning("a process that embeds died (%s); another one goes on", last_words)
        work = remaining(work, ledger.coverage)
    if not alone:
        log.warning("two processes that embed died (%s); Ray goes on", last_words)
        return None
    raise RuntimeError(
        f"engine 'process': {deaths} processes died one after the other ({last_words}). "
        "What is committed is kept; mend the cause, or let Ray do it, and run again"
    )


def _task(job: Job, work: list[ShardWork], limits: SinkLimits) -> Task:
    settings, description = job.settings, job.description
    return Task(
        source=job.source,
        work=work,
        read=read_settings([item.shard.uri for item in work], description, settings),
        decode=decode_settings(description, settings),
        encode=encode_settings(description, settings, plan_pools(this_machine(), actors=1)),
        storage=settings.corpus_storage,
        known=known_vectors(job.table, settings),
        table=job.table,
        schema=job.schema,
        files=job.files,
        limits=limits,
        rows=expected_rows(work),
        trial_s=TRIAL_S,
        patience_s=PATIENCE_S if settings.engine == "auto" else None,
    )


class OneProcess:
    """The process: started at once, so that its imports take no time of the driver's.

    Use it as a context, in which `run` is called once.
    """

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._open = contextlib.ExitStack()
        self._said = self._open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        # A session of its own: Ctrl-C is for the driver, which ends it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {worker.__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            start_new_session=True,
        )
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            self._open.callback(_close, stream)

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._open.close()

    def run(self, task: Task, queue: CommitQueue, progress: Callable[[int], None]) -> End:
        """Do the task: what is staged is committed as it falls due, and all of it before this returns.

        Args:
            task: what to do.
            queue: commits what is staged.
            progress: called with the rows of the queue, and those that are on their way there.

        Raises:
            Exception: what a stage raised.
        """
        end, coming = End.DIED, 0
        for message in self._messages(task):
            if isinstance(message, StagedGroup):
                queue.add(message)
                coming = 0
            elif isinstance(message, Rows):
                coming += message.rows
                progress(queue.rows + coming)
            elif isinstance(message, Failure):
                raise message.error
            else:
                end = message
            queue.commit_if_due()
        queue.commit()
        progress(queue.rows)
        return end

    def last_words(self) -> str:
        """How the process ended, and the end of what it said; for a log."""
        code = self._process.wait()
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - _LAST_WORDS))
        said = self._said.read().decode(errors="replace").strip()
        return f"it ended by signal {-code}" if code < 0 else f"it ended with code {code}: {said}"

    def _messages(self, task: Task) -> Iterator[Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            pickle.dump(task, stdin)
            stdin.flush()
        except BrokenPipeError:
            return
        while True:
            try:
                yield pickle.load(stdout)
            except (EOFError, pickle.UnpicklingError):
                return


def _close(stream: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):
        stream.close()
