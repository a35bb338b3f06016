"""Commits from a stream of encoded blocks on Ray. The driver holds references and counts, never rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import ray

from pipelines.ingest.engines.protocol import STAGES_IN_FLIGHT
from pipelines.ingest.sink.queueing import CommitQueue, Gathering
from pipelines.ingest.sink.staging import NO_FILES, Files, stage_envelopes
from pipelines.store.storage import TableRef

_RETRIES = 5


class StreamingSink:
    """Stages encoded blocks in groups, and commits the groups, when they are large or old enough.

    Args:
        queue: receives the staged groups and commits them.
        table: the table to write.
        schema: the table's schema.
        files: the corpus' files, by which staging finds the rows that new ones replace.
    """

    def __init__(self, queue: CommitQueue, table: TableRef, schema: pa.Schema, files: Files = NO_FILES) -> None:
        self._queue = queue
        self._stage = ray.remote(stage_envelopes).options(num_cpus=0, max_retries=_RETRIES)
        self._arguments = (table, ray.put(schema), ray.put(files))
        self._group: Gathering[Any] = Gathering(queue.limits.commit_interval_s)
        self._staging: list[Any] = []
        self._blocks = queue.blocks

    @property
    def rows(self) -> float:
        """Number of rows received: counted in staged groups, estimated in the others."""
        return self._queue.rows + (self._blocks - self._queue.blocks) * self._rows_per_block

    @property
    def _rows_per_block(self) -> float:
        """Mean rows of the blocks staged so far, by which the driver estimates the rows of blocks it cannot see."""
        if self._queue.blocks:
            return self._queue.rows / self._queue.blocks
        return self._queue.limits.block_rows

    def add(self, refs: list[Any], blocks: int) -> None:
        """Receive some encoded blocks.

        Args:
            refs: references to Ray's blocks.
            blocks: number of our blocks in them.
        """
        self._group.add(refs, blocks * self._rows_per_block)
        self._blocks += blocks
        if self._group.is_due(self._queue.group_rows):
            self._start_staging()
        self._collect(wait=len(self._staging) > STAGES_IN_FLIGHT)

    def finish(self) -> None:
        """Stage and commit everything that remains."""
        self._start_staging()
        while self._staging:
            self._collect(wait=True)
        self._queue.commit()

    def _start_staging(self) -> None:
        if refs := self._group.take():
            self._staging.append(self._stage.remote(*self._arguments, *refs))

    def _collect(self, *, wait: bool) -> None:
        if self._staging:
            timeout = None if wait else 0
            ready, self._staging = ray.wait(self._staging, num_returns=1, timeout=timeout)
            for group in ray.get(ready):
                self._queue.add(group)
        self._queue.commit_if_due()
