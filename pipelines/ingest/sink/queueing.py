"""Staged groups wait here for their commit, until there are enough of them or they have waited long enough."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipelines.ingest.sink.committing import Committer
from pipelines.ingest.sink.staging import StagedGroup
from pipelines.ledger.coverage import Coverage

T = TypeVar("T")
FRAGMENT_ROWS = 16_384
COMMIT_ROWS = 65_536
# Each commit rewrites the list of all fragments. At this share, a table of a billion rows takes some 1,300 commits.
_SHARE_OF_TABLE = 256
_FRAGMENTS_OF_A_COMMIT = 4
# A staging task holds a whole fragment in memory.
_MOST_FRAGMENT_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class SinkLimits:
    """When blocks are staged and groups are committed.

    Attributes:
        block_rows: most rows in a block.
        commit_interval_s: longest wait of a row for its commit, in seconds, while others arrive.
        fragment_rows: rows per fragment; None lets fragments grow with the table, from 16,384 to 65,536 rows.
        commit_rows: most rows that are staged and not committed, which is what a crash can cost. None is 65,536 rows,
            or a 256th of the table if that is more.
    """

    block_rows: int
    commit_interval_s: float
    fragment_rows: int | None = None
    commit_rows: int | None = None

    def rows_of_a_commit(self, table_rows: int) -> int:
        """The number of waiting rows at which a commit is due, for a table of `table_rows` rows.

        >>> limits = SinkLimits(block_rows=1, commit_interval_s=60.0)
        >>> limits.rows_of_a_commit(1_000_000), limits.rows_of_a_commit(1_000_000_000)
        (65536, 3906250)
        """
        return self.commit_rows or max(COMMIT_ROWS, table_rows // _SHARE_OF_TABLE)

    def rows_of_a_group(self, table_rows: int) -> int:
        """The number of rows at which blocks are staged: a fragment's, and never more than a commit's.

        >>> limits = SinkLimits(block_rows=1, commit_interval_s=60.0)
        >>> limits.rows_of_a_group(1_000_000), limits.rows_of_a_group(1_000_000_000)
        (16384, 65536)
        """
        commit = self.rows_of_a_commit(table_rows)
        grown = min(max(FRAGMENT_ROWS, commit // _FRAGMENTS_OF_A_COMMIT), _MOST_FRAGMENT_ROWS)
        return min(self.fragment_rows or grown, commit)


class Gathering(Generic[T]):
    """Blocks, or references to them, that wait to be staged as one group. Only this class decides when a group is full.

    Args:
        interval_s: longest wait of a block, in seconds.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self.items: list[T] = []
        self.rows = 0.0
        self._since = time.monotonic()

    def add(self, items: Iterable[T], rows: float) -> None:
        """Add blocks that together hold this many rows."""
        self.items += items
        self.rows += rows

    def is_due(self, group_rows: int) -> bool:
        """Whether the group has enough rows or has waited long enough."""
        return bool(self.items) and (self.rows >= group_rows or time.monotonic() - self._since >= self._interval_s)

    def take(self) -> list[T]:
        """Take all waiting blocks, and begin a new group."""
        taken, self.items, self.rows = self.items, [], 0.0
        self._since = time.monotonic()
        return taken


class CommitQueue:
    """Commits staged groups in the order in which they arrive."""

    def __init__(self, committer: Committer, limits: SinkLimits, table_rows: int = 0) -> None:
        """Set up a queue.

        Args:
            committer: commits the groups that are due.
            limits: when a group is committed: rows, seconds.
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
        """The number of rows at which blocks should be staged."""
        return self.limits.rows_of_a_group(self._table_rows + self.rows)

    @property
    def coverage(self) -> Coverage:
        """What is committed, record by record."""
        return self._committer.coverage

    def add(self, group: StagedGroup) -> None:
        """Add a group; `commit_if_due` commits it."""
        self._staged.append(group)
        self.rows += group.rows + group.rejects.num_rows
        self.blocks += group.blocks

    def commit_if_due(self) -> None:
        """Commit the waiting groups if they have enough rows or have waited long enough."""
        rows = sum(group.rows + group.rejects.num_rows for group in self._staged)
        due = time.monotonic() - self._last_commit >= self.limits.commit_interval_s
        if rows >= self.limits.rows_of_a_commit(self._table_rows + self.rows) or (rows and due):
            self.commit()

    def commit(self) -> None:
        """Commit all waiting groups."""
        if self._staged:
            self._committer.commit(self._staged)
            self._staged = []
        self._last_commit = time.monotonic()
