"""Staged groups wait here for their commit: until they are many, or have waited long enough."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipelines.ingest.sink.claims import Coverage
from pipelines.ingest.sink.committing import Committer
from pipelines.ingest.sink.staging import StagedGroup

T = TypeVar("T")
FRAGMENT_ROWS = 16_384
COMMIT_ROWS = 65_536
# A commit writes the list of all fragments anew. With parts of this size a table of a billion rows takes some 1,300.
_SHARE_OF_TABLE = 256
_FRAGMENTS_OF_A_COMMIT = 4
# A staging task holds a fragment in memory.
_MOST_FRAGMENT_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class SinkLimits:
    """When blocks are staged and groups committed.

    Attributes:
        block_rows: rows that a block holds at the most.
        commit_interval_s: the most seconds that rows wait for their commit while others arrive.
        fragment_rows: rows of a fragment; None lets them grow with the table, within bounds.
        commit_rows: the most rows, staged and not committed, that a crash can cost; None: 65,536, or a 256th of the
            table where that is more.
    """

    block_rows: int
    commit_interval_s: float
    fragment_rows: int | None = None
    commit_rows: int | None = None

    def rows_of_a_commit(self, table_rows: int) -> int:
        """Rows at which a commit is due, of a table that holds so many.

        >>> limits = SinkLimits(block_rows=1, commit_interval_s=60.0)
        >>> limits.rows_of_a_commit(1_000_000), limits.rows_of_a_commit(1_000_000_000)
        (65536, 3906250)
        """
        return self.commit_rows or max(COMMIT_ROWS, table_rows // _SHARE_OF_TABLE)

    def rows_of_a_group(self, table_rows: int) -> int:
        """Rows at which blocks are staged: a fragment, and never more than a commit.

        >>> limits = SinkLimits(block_rows=1, commit_interval_s=60.0)
        >>> limits.rows_of_a_group(1_000_000), limits.rows_of_a_group(1_000_000_000)
        (16384, 65536)
        """
        commit = self.rows_of_a_commit(table_rows)
        grown = min(max(FRAGMENT_ROWS, commit // _FRAGMENTS_OF_A_COMMIT), _MOST_FRAGMENT_ROWS)
        return min(self.fragment_rows or grown, commit)


class Gathering(Generic[T]):
    """Blocks, or references to them, that wait to be staged as one group: the one rule for when a group is full.

    Args:
        interval_s: the most seconds that a block waits.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self.items: list[T] = []
        self.rows = 0.0
        self._since = time.monotonic()

    def add(self, items: Iterable[T], rows: float) -> None:
        """Take some blocks in, which together hold this many rows."""
        self.items += items
        self.rows += rows

    def is_due(self, group_rows: int) -> bool:
        """Whether the group holds enough rows, or has waited long enough."""
        return bool(self.items) and (self.rows >= group_rows or time.monotonic() - self._since >= self._interval_s)

    def take(self) -> list[T]:
        """All that waits; a new group begins."""
        taken, self.items, self.rows = self.items, [], 0.0
        self._since = time.monotonic()
        return taken


class CommitQueue:
    """Commits staged groups in the order in which they come."""

    def __init__(self, committer: Committer, limits: SinkLimits, table_rows: int = 0) -> None:
        """A queue.

        Args:
            committer: commits what is due.
            limits: when that is.
            table_rows: rows of the table when the run begins.
        """
        self.limits = limits
        self._table_rows = table_rows
        self._committer = committer
        self._staged: list[StagedGroup] = []
        self._last_commit = time.monotonic()
        self.rows = self.blocks = 0

    @property
    def group_rows(self) -> int:
        """Rows at which blocks are to be staged."""
        return self.limits.rows_of_a_group(self._table_rows + self.rows)

    @property
    def coverage(self) -> Coverage:
        """What is committed, record by record."""
        return self._committer.coverage

    def add(self, group: StagedGroup) -> None:
        """Take a group in; `commit_if_due` commits it."""
        self._staged.append(group)
        self.rows += group.rows + group.rejects.num_rows
        self.blocks += group.blocks

    def commit_if_due(self) -> None:
        """Commit what waits, if it is enough or has waited long enough."""
        rows = sum(group.rows + group.rejects.num_rows for group in self._staged)
        due = time.monotonic() - self._last_commit >= self.limits.commit_interval_s
        if rows >= self.limits.rows_of_a_commit(self._table_rows + self.rows) or (rows and due):
            self.commit()

    def commit(self) -> None:
        """Commit all that waits."""
        if self._staged:
            self._committer.commit(self._staged)
            self._staged = []
        self._last_commit = time.monotonic()
