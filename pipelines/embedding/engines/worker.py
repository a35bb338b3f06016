"""The process that runs all stages of a small run: what it is told, what it says, and what it does.

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
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pyarrow as pa

from pipelines.blocks import unwrap_one
from pipelines.contract import POSITION, SHARD
from pipelines.embedding.stages.decoding import DecodeSettings, decode_envelope
from pipelines.embedding.stages.encoding import EncodeBlocks, EncodeSettings
from pipelines.embedding.stages.reading import ReadSettings, ShardWork
from pipelines.embedding.stages.reuse import KnownVectors, read_envelopes
from pipelines.sink.queueing import SinkLimits
from pipelines.sink.staging import Files, stage_envelopes
from pipelines.sources.base import Source
from pipelines.storage import Storage, TableRef


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that the process needs to know: plain data.

    Attributes:
        source: the corpus.
        work: the shards to read.
        read: see `stages.settings`; as `decode` and `encode`.
        decode: None where no pictures are embedded.
        encode: for the encoder.
        storage: how to reach the corpus.
        known: vectors that need not be made.
        table: where to stage.
        schema: the table's.
        files: of the corpus.
        limits: when to stage.
        rows: records to do, where that is known.
        trial_s: seconds of work before the process judges whether the rest is too much for it.
        patience_s: the most seconds that the rest may then seem to take; None if it does all of it in any case.
    """

    source: Source
    work: list[ShardWork]
    read: ReadSettings
    decode: DecodeSettings | None
    encode: EncodeSettings
    storage: Storage
    known: KnownVectors | None
    table: TableRef
    schema: pa.Schema
    files: Files
    limits: SinkLimits
    rows: int | None
    trial_s: float
    patience_s: float | None


class End(Enum):
    """How the process ended: with all done, or because the rest is too much for it, or not by itself."""

    FINISHED = "finished"
    TOO_MUCH = "too much"
    DIED = "died"


@dataclass(frozen=True)
class Rows:
    """A message: so many rows were encoded."""

    rows: int


@dataclass(frozen=True)
class Failure:
    """A message: the run fails with this error."""

    error: Exception


def _encoded(task: Task, encode: EncodeBlocks) -> Iterator[pa.Table]:
    """Envelopes, as an encode actor gives them."""
    for envelope in read_envelopes(task.source, task.work, task.read, task.storage, task.known):
        yield encode(envelope if task.decode is None else decode_envelope(envelope, task.decode))


def _work(task: Task, send: Callable[[Any], None]) -> None:
    """Do the task and say what is done."""
    encode = EncodeBlocks(task.encode)
    held: list[pa.Table] = []
    rows = done = 0
    started = since = time.monotonic()
    group_rows = task.limits.rows_of_a_group(table_rows=0)  # Few rows are embedded here.

    def stage() -> None:
        nonlocal held, rows, since
        if held:
            send(stage_envelopes(task.table, task.schema, task.files, *held))
        held, rows, since = [], 0, time.monotonic()

    for envelope in _encoded(task, encode):
        block = unwrap_one(envelope)
        count = block.num_rows
        held.append(envelope)
        rows += count
        done += block.group_by([SHARD, POSITION]).aggregate([]).num_rows
        send(Rows(count))
        if rows >= group_rows or time.monotonic() - since >= task.limits.commit_interval_s:
            stage()
        if _is_too_much(task, done, time.monotonic() - started):
            stage()
            send(End.TOO_MUCH)
            return
    stage()
    send(End.FINISHED)


def _is_too_much(task: Task, done: int, seconds: float) -> bool:
    """Whether what is left would take longer than Ray's start, by what was done takes so far."""
    if task.patience_s is None or task.rows is None or seconds < task.trial_s:
        return False
    return (task.rows - done) * seconds > task.patience_s * done


def main() -> None:
    """Do the task that is on standard input; the messages go to standard output, and nothing else does."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    task = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_driver, daemon=True).start()

    def send(message: Any) -> None:
        pickle.dump(message, out)
        out.flush()

    try:
        _work(task, send)
    except Exception as error:
        send(Failure(portable(error)))


def _end_with_the_driver() -> None:
    """The pipe's other end closes when the driver has ended, however it did; nobody would commit what is staged."""
    os.read(0, 1)
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
