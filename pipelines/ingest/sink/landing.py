"""Landing a change: the compare-and-swap that exactly-once rests on.

A commit names the version that it was decided on, and fails if the table has moved on. On failure the sink reads the
changes of the versions in between and decides the commit anew. A store may accept a commit and lose the response, so
each commit carries a token by which its committer recognises it.

Lance has no strict append: a stale `Append` rebases and lands. Two operations are strict. An `Update` without retries
that names the table's first fragment (see `stale.replacing_rows`); and, for a table that has no fragment yet, a
`Merge`.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import lance
from lance.fragment import FragmentMetadata

from pipelines.ingest.sink.claims import Change
from pipelines.ingest.sink.ledger import Ledger, transaction_properties
from pipelines.ingest.sink.stale import StaleRow, replacing_rows
from pipelines.store.faults import fault
from pipelines.store.retries import DEFAULT, Fault, classify, retry
from pipelines.store.storage import TableRef
from pipelines.tables.opening import is_conflict, open_dataset, translate

_ATTEMPTS = 30
_TOKEN_PROPERTY = "isthmus.commit"


@dataclass(frozen=True, kw_only=True)
class Step:
    """The content of a commit, as decided on one version of the table.

    Attributes:
        change: the change as the ledger will record it.
        fragments: metadata of the staged fragments to add, as JSON.
        leaving: the rows to remove.
    """

    change: Change
    fragments: Sequence[str] = ()
    leaving: Sequence[StaleRow] = ()


class Lander:
    """Lands steps on one table and records them in its ledger."""

    def __init__(self, table: TableRef, ledger: Ledger) -> None:
        self._table = table
        self._ledger = ledger

    def land(self, decide: Callable[[lance.LanceDataset], Step | None]) -> tuple[int, Step | None]:
        """Land the step that `decide` returns, on the version that it was decided on.

        Args:
            decide: called for each version that is tried, after the ledger has caught up with it; returns None if there
                is nothing to do.

        Returns:
            The version, and the step that made it (None if there was nothing to do).

        Raises:
            OSError: the store refuses, or 30 commits in a row lost to other writers; the table is as of its last
                commit.
        """
        dataset = open_dataset(self._table)
        since, token = int(dataset.version), uuid.uuid4().hex
        step: Step | None = None
        for attempt in range(1, _ATTEMPTS + 1):
            self._ledger.record_missing(dataset)
            if own := self._find_own(dataset, since, token):
                return own, step
            step = decide(dataset)
            if step is None:
                return int(dataset.version), None
            landed = self._try(dataset, step, token, attempt)
            if landed is not None:
                fault("after_commit")
                self._ledger.count_in(step.change, landed)
                fault("after_record")
                return landed, step
            dataset = open_dataset(self._table)
        raise OSError(f"table {self._table}: {_ATTEMPTS} commits in a row lost to another writer; try again later")

    def _find_own(self, dataset: lance.LanceDataset, since: int, token: str) -> int | None:
        """The version after `since` that a commit with this token made; None if there is none."""
        for version in range(since + 1, int(dataset.version) + 1):
            try:
                properties = retry(partial(transaction_properties, dataset, version), self._table.uri)
            except FileNotFoundError:  # cleaned up; the ledger has its change
                continue
            if properties.get(_TOKEN_PROPERTY) == token:
                return version
        return None

    def _try(self, dataset: lance.LanceDataset, step: Step, token: str, attempt: int) -> int | None:
        """The version that the commit made. None means try again: another writer came first, or the store failed.

        After a failure of the store the commit may or may not have landed.
        """
        fault("before_commit")
        try:
            transaction = lance.Transaction(
                read_version=dataset.version,
                operation=_operation(dataset, step),
                transaction_properties={**step.change.to_properties(), _TOKEN_PROPERTY: token},
            )
            landed = lance.LanceDataset.commit(
                self._table.uri, transaction, storage_options=self._table.options, max_retries=0
            )
        except (OSError, ValueError) as error:
            if is_conflict(error):
                time.sleep(random.uniform(0.0, 0.1))
                return None
            if classify(error) in (Fault.TRANSIENT, Fault.NOT_FOUND) and attempt < DEFAULT.attempts:
                time.sleep(random.uniform(0.0, DEFAULT.bound_s(attempt)))
                return None
            raise translate(error, self._table.uri) from error
        return int(landed.version)


def _operation(dataset: lance.LanceDataset, step: Step) -> lance.LanceOperation.BaseOperation:
    new = [FragmentMetadata.from_json(text) for text in step.fragments]
    return replacing_rows(dataset, step.leaving, new)
