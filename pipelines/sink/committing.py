"""The one committer: staged groups become a version of the table, each record exactly once.

A commit is a compare-and-swap: it names the version that it was decided on, and fails if the table moved. On
failure the claims of the versions in between are read before anything is tried again, so that a record which
another commit settled is never settled twice, whoever made that commit. A store may take a commit and lose its
answer: each carries a token by which its committer finds it. Lance has no strict append (a stale
`Append` rebases and lands), but a `Merge` of the old fragments and the new, with no retries, is one.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import lance
from lance.fragment import FragmentMetadata

from pipelines.retries import DEFAULT, Fault, classify, retry
from pipelines.sink.claims import CLAIMS_PROPERTY, encode_claims
from pipelines.sink.lease import Lease
from pipelines.sink.ledger import Ledger
from pipelines.sink.rejects import merge_rejects
from pipelines.sink.staging import StagedGroup
from pipelines.sink.tables import is_conflict, open_dataset, translate
from pipelines.storage import TableRef

_ATTEMPTS = 30
_TOKEN_PROPERTY = "isthmus.commit"
log = logging.getLogger(__name__)


class ClaimConflictError(RuntimeError):
    """Another driver settled a part of a staged group; the group cannot be committed as it is."""


@dataclass
class Committed:
    """What a committer did so far."""

    commits: int = 0
    written: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    overlong: int = 0
    redone: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Committer:
    """Commits staged groups of one table under its lease."""

    def __init__(self, table: TableRef, ledger: Ledger, lease: Lease) -> None:
        self._table = table
        self._ledger = ledger
        self._lease = lease
        self.done = Committed()

    def commit(self, groups: Sequence[StagedGroup]) -> int:
        """Land the groups in one version of the table; return that version.

        The rejects go first: a crash in between leaves rejects whose records are not settled, and the next run
        merges the very same rows again.

        Raises:
            LeaseHeldError: the lease was lost.
            ClaimConflictError: another driver settled a part of a group.
            OSError: the store refuses; the table is as of its last commit.
        """
        started = time.perf_counter()
        self._lease.renew()
        dataset = open_dataset(self._table)
        since, token = int(dataset.version), uuid.uuid4().hex
        fresh: list[StagedGroup] = []
        for attempt in range(1, _ATTEMPTS + 1):
            self._ledger.record_missing(dataset)
            if own := self._find_own(dataset, since, token):
                self._count(fresh, time.perf_counter() - started)
                return own
            fresh = [group for group in groups if not self._is_settled(group)]
            if not fresh:
                return int(dataset.version)
            self._merge_rejects(fresh)
            landed = self._try_commit(dataset, fresh, token, attempt)
            if landed is not None:
                self._ledger.count_in([claim for group in fresh for claim in group.claims], landed)
                self._count(fresh, time.perf_counter() - started)
                return landed
            dataset = open_dataset(self._table)
        raise OSError(f"table {self._table}: {_ATTEMPTS} commits in a row met another writer's; try again later")

    def _is_settled(self, group: StagedGroup) -> bool:
        """Whether all of the group was settled by an earlier commit."""
        overlap = sum(self._ledger.coverage.overlap(claim) for claim in group.claims)
        if overlap == 0:
            return False
        if overlap == sum(claim.stop - claim.start for claim in group.claims):
            self.done.redone += group.rows
            log.warning("a staged group of %d rows is in the table already; dropped", group.rows)
            return True
        raise ClaimConflictError(
            f"table {self._table}: another job committed {overlap} records of a group that this one staged; "
            "start again: what is there is kept, what is missing will be embedded"
        )

    def _merge_rejects(self, groups: Sequence[StagedGroup]) -> None:
        try:
            for group in groups:
                merge_rejects(self._table, group.rejects)
        except OSError as error:
            raise translate(error, self._table.sibling("rejects").uri) from error

    def _find_own(self, dataset: lance.LanceDataset, since: int, token: str) -> int | None:
        """The version after `since` that a commit of this token made, None where there is none."""
        for version in range(since + 1, int(dataset.version) + 1):
            try:
                transaction = retry(partial(dataset.read_transaction, version), self._table.uri)
            except FileNotFoundError:  # cleaned away; the ledger has its claims
                continue
            if transaction and (transaction.transaction_properties or {}).get(_TOKEN_PROPERTY) == token:
                return version
        return None

    def _try_commit(
        self, dataset: lance.LanceDataset, groups: Sequence[StagedGroup], token: str, attempt: int
    ) -> int | None:
        """The version that the commit made, None where it is to be tried again: another writer came first, or the
        store failed and the commit may or may not be there.
        """
        new = [FragmentMetadata.from_json(text) for group in groups for text in group.fragments]
        old = [fragment.metadata for fragment in dataset.get_fragments()]
        claims = [claim for group in groups for claim in group.claims]
        transaction = lance.Transaction(
            read_version=dataset.version,
            operation=lance.LanceOperation.Merge(old + new, dataset.lance_schema),
            transaction_properties={CLAIMS_PROPERTY: encode_claims(claims), _TOKEN_PROPERTY: token},
        )
        try:
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

    def _count(self, groups: Sequence[StagedGroup], seconds: float) -> None:
        done = self.done
        done.commits += 1
        done.seconds["commit"] = done.seconds.get("commit", 0.0) + seconds
        for group in groups:
            done.written += group.rows
            done.overlong += group.overlong
            for name, value in group.seconds.items():
                done.seconds[name] = done.seconds.get(name, 0.0) + value
            for reason in group.rejects["reason"].to_pylist():
                done.rejected[reason] = done.rejected.get(reason, 0) + 1
