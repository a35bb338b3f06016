"""A worker process: its task, its messages, and its main function.

It does what Ray's tasks and actors do, with the same functions on the same blocks, one block after the other.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from queue import SimpleQueue
from typing import Any

import pyarrow as pa

from encoders.registry import preload
from pipelines.ingest.sink.queueing import Gathering
from pipelines.ingest.stages.pipeline import Stages
from pipelines.ingest.stages.reading import ShardWork
from pipelines.store.storage import is_remote


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """Everything that a worker process needs, as plain data.

    Attributes:
        stages: the stages of the run.
        group_rows: number of rows at which blocks are staged as a group.
        interval_s: the most seconds that a block waits for its group to be staged.
    """

    stages: Stages
    group_rows: int
    interval_s: float


class Signal(Enum):
    """A message: the process wants more work, it is done, or (sent on its behalf) it died."""

    MORE = "more"
    FINISHED = "finished"
    DIED = "died"


@dataclass(frozen=True)
class Encoded:
    """A message: the process encoded this many rows."""

    rows: int


@dataclass(frozen=True)
class Failure:
    """A message: the run must fail with this error."""

    error: Exception


def _encoded(stages: Stages, work: Iterator[ShardWork]) -> Iterator[pa.Table]:
    """The encoded blocks of the work. They stay in this process, so they need no envelopes."""
    encoder = stages.encoder()
    blocks = stages.read(work)
    for block in read_ahead(blocks) if is_remote(stages.reading.root) else blocks:
        yield encoder.encode(stages.decode(block))


def read_ahead(items: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same items, with the next one fetched in a thread, so that a store answers while pictures are decoded."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def _work(task: WorkerTask, work: Iterator[ShardWork], send: Callable[[Any], None]) -> None:
    """Do the work, and send a message for each encoded block, for each staged group, and at the end."""
    waiting: Gathering[pa.Table] = Gathering(task.interval_s)
    for block in _encoded(task.stages, work):
        waiting.add([block], block.num_rows)
        send(Encoded(block.num_rows))
        if waiting.is_due(task.group_rows):
            send(task.stages.stage(waiting.take()))
    if waiting.items:
        send(task.stages.stage(waiting.take()))
    send(Signal.FINISHED)


def main() -> None:
    """Run a worker process.

    It reads its task from standard input, asks for work and does it. Only its messages go to standard output. Until the
    task arrives, it imports what the encoder named by the first argument will need.
    """
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()
    preload(sys.argv[1])
    saying = threading.Lock()

    def send(message: Any) -> None:
        with saying:
            pickle.dump(message, out)
            out.flush()

    def given() -> Iterator[ShardWork]:
        """The work that the driver gives. Asks for the next portion when the last one is done."""
        send(Signal.MORE)
        while portion := inbox.get():
            yield from portion
            send(Signal.MORE)

    try:
        _work(inbox.get(), given(), send)
    except Exception as error:
        send(Failure(portable(error)))


def _listen(inbox: SimpleQueue[Any]) -> None:
    """Receive messages of the driver. End this process when the driver's end of the pipe closes.

    It closes whenever the driver ends, even if it is killed. Nothing would then commit the staged groups.
    """
    said = os.fdopen(os.dup(0), "rb")
    while True:
        try:
            inbox.put(pickle.load(said))
        except (EOFError, pickle.UnpicklingError):
            os._exit(1)


def portable(error: Exception) -> Exception:
    """The error in a form that the driver can unpickle, with its traceback as a note."""
    where = "".join(traceback.format_exception(error))
    try:
        error.add_note(where)
        copy: Exception = pickle.loads(pickle.dumps(error))
        return copy
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
