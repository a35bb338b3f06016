"""Staged groups wait here for their commit: until they are many, or have waited long enough."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipelines.sink.committing import Committer
from pipelines.sink.staging import StagedGroup


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

    @property
    def group_rows(self) -> int:
        """Rows at which blocks are staged: a fragment, and never more than a commit."""
        return min(self.fragment_rows, self.commit_rows)


class CommitQueue:
    """Commits staged groups in the order in which they come."""

    def __init__(self, committer: Committer, limits: SinkLimits) -> None:
        self.limits = limits
        self._committer = committer
        self._staged: list[StagedGroup] = []
        self._last_commit = time.monotonic()
        self.rows = self.blocks = 0

    def add(self, group: StagedGroup) -> None:
        """Take a group in; `commit_if_due` commits it."""
        self._staged.append(group)
        self.rows += group.rows + group.rejects.num_rows
        self.blocks += group.blocks

    def commit_if_due(self) -> None:
        """Commit what waits, if it is enough or has waited long enough."""
        rows = sum(group.rows + group.rejects.num_rows for group in self._staged)
        due = time.monotonic() - self._last_commit >= self.limits.commit_interval_s
        if rows >= self.limits.commit_rows or (rows and due):
            self.commit()

    def commit(self) -> None:
        """Commit all that waits."""
        if self._staged:
            self._committer.commit(self._staged)
            self._staged = []
        self._last_commit = time.monotonic()
