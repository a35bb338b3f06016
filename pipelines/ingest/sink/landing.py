"""Landing a change: the compare-and-swap on which exactly-once rests.

A commit names the version that it was decided on, and fails if the table moved. On failure the changes of the versions
in between are read, and the commit is decided anew. A store may take a commit and lose its answer: each carries a token
by which its committer finds it.

Lance has no strict append: a stale `Append` rebases and lands. An `Update` with no retries that names the table's first
fragment is one (see `stale.replacing_rows`), and so is, for a table that has no fragment yet, a `Merge`.
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
    """What a commit is to do, as it was decided on one version of the table.

    Attributes:
        change: what the ledger will say of it.
        fragments: metadata of staged fragments, as JSON.
        leaving: rows that leave.
    """

    change: Change
    fragments: Sequence[str] = ()
    leaving: Sequence[StaleRow] = ()


class Lander:
    """Lands steps on one table, and records them in its ledger."""

    def __init__(self, table: TableRef, ledger: Ledger) -> None:
        self._table = table
        self._ledger = ledger

    def land(self, decide: Callable[[lance.LanceDataset], Step | None]) -> tuple[int, Step | None]:
        """Land what `decide` says, on the version that it said it of.

        Args:
            decide: called with each version that is tried, the ledger caught up with it; None where nothing is to do.

        Returns:
            The version, and the step that made it (None: nothing was to do).

        Raises:
            OSError: the store refuses; the table is as of its last commit.
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
        raise OSError(f"table {self._table}: {_ATTEMPTS} commits in a row met another writer's; try again later")

    def _find_own(self, dataset: lance.LanceDataset, since: int, token: str) -> int | None:
        """The version after `since` that a commit of this token made, None where there is none."""
        for version in range(since + 1, int(dataset.version) + 1):
            try:
                properties = retry(partial(transaction_properties, dataset, version), self._table.uri)
            except FileNotFoundError:  # cleaned away; the ledger has its change
                continue
            if properties.get(_TOKEN_PROPERTY) == token:
                return version
        return None

    def _try(self, dataset: lance.LanceDataset, step: Step, token: str, attempt: int) -> int | None:
        """The version that the commit made, None where it is to be tried again: another writer came first, or the
        store failed and the commit may or may not be there.
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
