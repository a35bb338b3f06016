"""From a stream of encoded blocks to commits: the driver holds references and counts, never rows."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from pipelines.sink.committing import Committer
from pipelines.sink.staging import StagedGroup, stage_blocks
from pipelines.storage import TableRef

STAGES_IN_FLIGHT = 4
_RETRIES = 5


@dataclass(frozen=True, kw_only=True)
class SinkLimits:
    """When blocks are staged and groups committed.

    Attributes:
        fragment_rows: rows of a fragment.
        commit_rows: the most rows, staged and not committed, that a crash can cost.
        commit_interval_s: the most seconds that rows wait for their commit while others arrive.
    """

    fragment_rows: int
    commit_rows: int
    commit_interval_s: float


@dataclass
class _Group:
    """References to encoded blocks that will be staged together."""

    refs: list[Any] = field(default_factory=list)
    rows: int = 0
    since: float = field(default_factory=time.monotonic)


class StreamingSink:
    """Turns encoded blocks into staged groups, and staged groups into commits, as they fill up or grow old."""

    def __init__(self, committer: Committer, table: TableRef, schema: pa.Schema, limits: SinkLimits) -> None:
        self._committer = committer
        self._limits = limits
        self._stage = ray.remote(stage_blocks).options(num_cpus=0, max_retries=_RETRIES)
        self._arguments = (table, ray.put(schema))
        self._fragment_rows = min(limits.fragment_rows, limits.commit_rows)
        self._group = _Group()
        self._staging: list[Any] = []
        self._staged: list[StagedGroup] = []
        self._last_commit = time.monotonic()

    def add(self, refs: list[Any], rows: int) -> None:
        """Take in some encoded blocks."""
        self._group.refs += refs
        self._group.rows += rows
        old = time.monotonic() - self._group.since >= self._limits.commit_interval_s
        if self._group.rows >= self._fragment_rows or old:
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
            self._staged += ray.get(ready)
        rows = sum(group.rows + group.rejects.num_rows for group in self._staged)
        due = time.monotonic() - self._last_commit >= self._limits.commit_interval_s
        if rows >= self._limits.commit_rows or (rows and due):
            self._commit()

    def _commit(self) -> None:
        if self._staged:
            self._committer.commit(self._staged)
            self._staged = []
        self._last_commit = time.monotonic()
