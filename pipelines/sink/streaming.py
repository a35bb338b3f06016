"""From a stream of encoded blocks to commits: the driver holds references and counts, never rows."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from pipelines.sink.committing import Committer
from pipelines.sink.staging import NO_FILES, Files, StagedGroup, stage_envelopes
from pipelines.storage import TableRef

STAGES_IN_FLIGHT = 2
_RETRIES = 5


@dataclass(frozen=True, kw_only=True)
class SinkLimits:
    """When blocks are staged and groups committed.

    Attributes:
        fragment_rows: rows of a fragment.
        commit_rows: the most rows, staged and not committed, that a crash can cost.
        commit_interval_s: the most seconds that rows wait for their commit while others arrive.
        block_rows: rows that a block holds at the most.
    """

    fragment_rows: int
    commit_rows: int
    commit_interval_s: float
    block_rows: int


@dataclass
class _Group:
    """References to encoded blocks that will be staged together."""

    refs: list[Any] = field(default_factory=list)
    blocks: int = 0
    since: float = field(default_factory=time.monotonic)


class StreamingSink:
    """Turns encoded blocks into staged groups, and staged groups into commits, as they fill up or grow old."""

    def __init__(
        self, committer: Committer, table: TableRef, schema: pa.Schema, limits: SinkLimits, files: Files = NO_FILES
    ) -> None:
        self._committer = committer
        self._limits = limits
        self._stage = ray.remote(stage_envelopes).options(num_cpus=0, max_retries=_RETRIES)
        self._arguments = (table, ray.put(schema), ray.put(files))
        self._fragment_rows = min(limits.fragment_rows, limits.commit_rows)
        self._group = _Group()
        self._staging: list[Any] = []
        self._staged: list[StagedGroup] = []
        self._last_commit = time.monotonic()
        self._counted_rows = self._counted_blocks = self._blocks = 0

    @property
    def rows(self) -> float:
        """Rows taken in: counted where their group was staged, estimated for the rest."""
        return self._counted_rows + (self._blocks - self._counted_blocks) * self._rows_per_block

    @property
    def _rows_per_block(self) -> float:
        """The driver does not see into blocks: it counts them by the mean of those staged so far."""
        if self._counted_blocks:
            return self._counted_rows / self._counted_blocks
        return self._limits.block_rows

    def add(self, refs: list[Any], blocks: int) -> None:
        """Take in some encoded blocks."""
        self._group.refs += refs
        self._group.blocks += blocks
        self._blocks += blocks
        old = time.monotonic() - self._group.since >= self._limits.commit_interval_s
        if self._group.blocks * self._rows_per_block >= self._fragment_rows or old:
            self._start_staging()
        self._collect(wait=len(self._staging) > STAGES_IN_FLIGHT)

    def finish(self) -> None:
        """Stage and commit all that is left."""
        self._start_staging()
        while self._staging:
            self._collect(wait=True)
        self._commit()

    def _start_staging(self) -> None:
        if self._group.refs:
            self._staging.append(self._stage.remote(*self._arguments, *self._group.refs))
        self._group = _Group()

    def _collect(self, *, wait: bool) -> None:
        if self._staging:
            timeout = None if wait else 0
            ready, self._staging = ray.wait(self._staging, num_returns=1, timeout=timeout)
            for group in ray.get(ready):
                self._staged.append(group)
                self._counted_rows += group.rows + group.rejects.num_rows
                self._counted_blocks += group.blocks
        rows = sum(group.rows + group.rejects.num_rows for group in self._staged)
        due = time.monotonic() - self._last_commit >= self._limits.commit_interval_s
        if rows >= self._limits.commit_rows or (rows and due):
            self._commit()

    def _commit(self) -> None:
        if self._staged:
            self._committer.commit(self._staged)
            self._staged = []
        self._last_commit = time.monotonic()
