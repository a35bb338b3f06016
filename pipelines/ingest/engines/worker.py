"""A process that runs all stages: what it is told, what it says, and what it does.

It does what Ray's tasks and actors do, with the same functions on the same blocks, one after the other.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from queue import SimpleQueue
from typing import Any

import pyarrow as pa

from encoders.registry import preload
from pipelines.ingest.sink.queueing import SinkLimits
from pipelines.ingest.sink.staging import Files, stage_blocks
from pipelines.ingest.stages.decoding import DecodeSettings, decode_safely
from pipelines.ingest.stages.encoding import EncodeBlocks, EncodeSettings
from pipelines.ingest.stages.reading import ReadSettings, ShardWork
from pipelines.ingest.stages.reuse import KnownVectors, read_with_known
from pipelines.sources.base import Source
from pipelines.store.storage import Storage, TableRef, is_remote


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """All that the process needs to know: plain data.

    Attributes:
        source: the corpus.
        read: see `stages.settings`; as `decode` and `encode`.
        decode: None where no pictures are embedded.
        encode: for the encoder.
        storage: how to reach the corpus.
        known: vectors that need not be made.
        table: where to stage.
        schema: the table's.
        files: of the corpus.
        limits: when to stage.
        group_rows: rows at which blocks are staged.
    """

    source: Source
    read: ReadSettings
    decode: DecodeSettings | None
    encode: EncodeSettings
    storage: Storage
    known: KnownVectors | None
    table: TableRef
    schema: pa.Schema
    files: Files
    limits: SinkLimits
    group_rows: int


class Signal(Enum):
    """A message: the process wants more work, or it is done; or, of a process that says no more, that it died."""

    MORE = "more"
    FINISHED = "finished"
    DIED = "died"


@dataclass(frozen=True)
class Encoded:
    """A message: so many rows were encoded."""

    rows: int


@dataclass(frozen=True)
class Failure:
    """A message: the run fails with this error."""

    error: Exception


def _encoded(task: WorkerTask, work: Iterator[ShardWork]) -> Iterator[pa.Table]:
    """Blocks, as an encode actor gives them; they stay in this process, so they need no envelopes."""
    encoder = EncodeBlocks(task.encode)
    blocks = read_with_known(task.source, work, task.read, task.storage, task.known)
    for block in read_ahead(blocks) if is_remote(task.read.root) else blocks:
        yield encoder.encode(block if task.decode is None else decode_safely(block, task.decode))


def read_ahead(items: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same items, the next one made in a thread meanwhile: while pictures are decoded, a store answers."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def _work(task: WorkerTask, work: Iterator[ShardWork], send: Callable[[Any], None]) -> None:
    """Do the work and say what is done."""
    held: list[pa.Table] = []
    rows, since = 0, time.monotonic()
    for block in _encoded(task, work):
        held.append(block)
        rows += block.num_rows
        send(Encoded(block.num_rows))
        if rows >= task.group_rows or time.monotonic() - since >= task.limits.commit_interval_s:
            send(stage_blocks(task.table, task.schema, *held, files=task.files))
            held, rows, since = [], 0, time.monotonic()
    if held:
        send(stage_blocks(task.table, task.schema, *held, files=task.files))
    send(Signal.FINISHED)


def main() -> None:
    """Do the task that is on standard input, and the work that is given on asking; the messages go to standard
    output, and nothing else does. Until the task comes, import what the encoder of the first argument will need."""
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
        """What the driver gives; it is asked when all before is done."""
        send(Signal.MORE)
        while portion := inbox.get():
            yield from portion
            send(Signal.MORE)

    try:
        _work(inbox.get(), given(), send)
    except Exception as error:
        send(Failure(portable(error)))


def _listen(inbox: SimpleQueue[Any]) -> None:
    """Take in what the driver says. The pipe's other end closes when the driver has ended, however it did; nobody
    would commit what is staged."""
    said = os.fdopen(os.dup(0), "rb")
    while True:
        try:
            inbox.put(pickle.load(said))
        except (EOFError, pickle.UnpicklingError):
            os._exit(1)


def portable(error: Exception) -> Exception:
    """The error, such that the driver can read it, with where it came from."""
    where = "".join(traceback.format_exception(error))
    try:
        error.add_note(where)
        copy: Exception = pickle.loads(pickle.dumps(error))
        return copy
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
