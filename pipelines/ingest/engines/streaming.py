"""From a stream of encoded blocks on Ray to commits: the driver holds references and counts, never rows."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from pipelines.ingest.engines.job import STAGES_IN_FLIGHT
from pipelines.ingest.sink.queueing import CommitQueue
from pipelines.ingest.sink.staging import NO_FILES, Files, stage_envelopes
from pipelines.store.storage import TableRef

_RETRIES = 5


@dataclass
class _Group:
    """References to encoded blocks that will be staged together."""

    refs: list[Any] = field(default_factory=list)
    blocks: int = 0
    since: float = field(default_factory=time.monotonic)


class StreamingSink:
    """Turns encoded blocks into staged groups, and staged groups into commits, as they fill up or grow old."""

    def __init__(self, queue: CommitQueue, table: TableRef, schema: pa.Schema, files: Files = NO_FILES) -> None:
        self._queue = queue
        self._stage = ray.remote(stage_envelopes).options(num_cpus=0, max_retries=_RETRIES)
        self._arguments = (table, ray.put(schema), ray.put(files))
        self._group = _Group()
        self._staging: list[Any] = []
        self._blocks = queue.blocks

    @property
    def rows(self) -> float:
        """Rows taken in: counted where their group was staged, estimated for the rest."""
        return self._queue.rows + (self._blocks - self._queue.blocks) * self._rows_per_block

    @property
    def _rows_per_block(self) -> float:
        """The driver does not see into blocks: it counts them by the mean of those staged so far."""
        if self._queue.blocks:
            return self._queue.rows / self._queue.blocks
        return self._queue.limits.block_rows

    def add(self, refs: list[Any], blocks: int) -> None:
        """Take in some encoded blocks."""
        self._group.refs += refs
        self._group.blocks += blocks
        self._blocks += blocks
        old = time.monotonic() - self._group.since >= self._queue.limits.commit_interval_s
        if self._group.blocks * self._rows_per_block >= self._queue.group_rows or old:
            self._start_staging()
        self._collect(wait=len(self._staging) > STAGES_IN_FLIGHT)

    def finish(self) -> None:
        """Stage and commit all that is left."""
        self._start_staging()
        while self._staging:
            self._collect(wait=True)
        self._queue.commit()

    def _start_staging(self) -> None:
        if self._group.refs:
            self._staging.append(self._stage.remote(*self._arguments, *self._group.refs))
        self._group = _Group()

    def _collect(self, *, wait: bool) -> None:
        if self._staging:
            timeout = None if wait else 0
            ready, self._staging = ray.wait(self._staging, num_returns=1, timeout=timeout)
            for group in ray.get(ready):
                self._queue.add(group)
        self._queue.commit_if_due()
