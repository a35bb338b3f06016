"""Landing a change: the compare-and-swap that exactly-once rests on.

A commit names the version that it was decided on, and fails if the table has moved on. On failure the sink reads the
changes of the versions in between and decides the commit anew. Each decision checks that the job still holds the lease:
a job that takes over a lease makes a version of its own first, so no commit that was decided before can land after it.
A store may accept a commit and lose the response, so each commit carries a token by which its committer recognises it.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lance
from lance.fragment import FragmentMetadata

from pipelines.ingest.sink.fitting import check_files
from pipelines.ingest.sink.stale import MovedRowsError, StaleRow, leaving_fragments
from pipelines.ledger.claims import Change
from pipelines.ledger.history import TOKEN_PROPERTY, commit_at
from pipelines.ledger.ledger import Ledger
from pipelines.store.faults import fault
from pipelines.store.retries import DEFAULT, Fault, classify
from pipelines.store.storage import TableRef
from pipelines.tables.lease import Lease
from pipelines.tables.opening import is_conflict, open_dataset, translate
from pipelines.tables.swap import swap, swap_operation

_ATTEMPTS = 30


@dataclass(frozen=True, kw_only=True)
class Step:
    """The content of a commit, as decided on one version of the table.

    Attributes:
        change: the change as the ledger will record it.
        fragments: the staged fragments to add.
        leaving: the rows to remove.
    """

    change: Change
    fragments: Sequence[FragmentMetadata] = ()
    leaving: Sequence[StaleRow] = ()


# Called with a version of the table, and with whether the last attempt found the leaving rows moved.
Decide = Callable[[lance.LanceDataset, bool], Step | None]


class Lander:
    """Lands steps on one table and records them in its ledger."""

    def __init__(self, table: TableRef, ledger: Ledger, lease: Lease) -> None:
        self._table = table
        self._ledger = ledger
        self._lease = lease

    def land(self, decide: Decide) -> tuple[lance.LanceDataset, Step | None]:
        """Land the step that `decide` returns, on the version that it was decided on.

        Args:
            decide: called for each version that is tried, after the ledger has caught up with it; returns None if there
                is nothing to do.

        Returns:
            The table at the version that was made, and the step that made it (None if there was nothing to do).

        Raises:
            LeaseHeldError: another job has taken over the table.
            OSError: the store refuses, or 30 commits in a row lost to other writers; the table is as of its last
                commit.
        """
        dataset = open_dataset(self._table)
        since, token = int(dataset.version), uuid.uuid4().hex
        step: Step | None = None
        moved = False
        for attempt in range(1, _ATTEMPTS + 1):
            self._ledger.record_missing(dataset)
            if step is not None and _has_landed(dataset, since, token):
                return dataset, step
            self._lease.check(dataset)
            step = decide(dataset, moved)
            if step is None:
                return dataset, None
            try:
                landed = self._try(dataset, step, token, attempt)
            except MovedRowsError:
                moved, landed = True, None
            if landed is not None:
                fault("after_commit")
                self._ledger.count_in(step.change, landed, token)
                fault("after_record")
                return landed, step
            dataset = open_dataset(self._table)
        raise OSError(f"table {self._table}: {_ATTEMPTS} commits in a row lost to another writer; try again later")

    def _try(self, dataset: lance.LanceDataset, step: Step, token: str, attempt: int) -> lance.LanceDataset | None:
        """The version that the commit made. None means try again: another writer came first, or the store failed.

        After a failure of the store the commit may or may not have landed.

        Raises:
            MovedRowsError: the leaving rows are not where they were looked up.
            StaleGroupError: staged files are gone.
        """
        fault("before_commit")
        try:
            updated, removed = leaving_fragments(dataset, step.leaving)
            operation = swap_operation(dataset, step.fragments, updated, removed)
            check_files(step.fragments, self._table)
            return swap(self._table, dataset, operation, {**step.change.to_properties(), TOKEN_PROPERTY: token})
        except (OSError, ValueError) as error:
            if is_conflict(error):
                time.sleep(random.uniform(0.0, 0.1))
                return None
            if classify(error) in (Fault.TRANSIENT, Fault.NOT_FOUND) and attempt < DEFAULT.attempts:
                time.sleep(random.uniform(0.0, DEFAULT.bound_s(attempt)))
                return None
            raise translate(error, self._table.uri) from error


def _has_landed(dataset: lance.LanceDataset, since: int, token: str) -> bool:
    """Whether a commit with this token made one of the versions after `since`.

    If the version was cleaned up, coverage was rebuilt from the rows, and tells that the groups are settled.
    """
    versions = range(since + 1, int(dataset.version) + 1)
    return any(commit is not None and commit.token == token for commit in (commit_at(dataset, v) for v in versions))
