"""The one committer: staged groups become a version of the table, each record exactly once.

A commit is a compare-and-swap: it names the version that it was decided on, and fails if the table moved. On
failure the claims of the versions in between are read before anything is tried again, so that a record which
another commit settled is never settled twice, whoever made that commit. Lance has no strict append (a stale
`Append` rebases and lands), but a `Merge` of the old fragments and the new, with no retries, is one.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import lance
from lance.fragment import FragmentMetadata

from pipelines.sink.claims import CLAIMS_PROPERTY, Claim, encode_claims
from pipelines.sink.lease import Lease
from pipelines.sink.ledger import Ledger
from pipelines.sink.rejects import merge_rejects
from pipelines.sink.staging import STAGED_LIFE_S, StagedGroup
from pipelines.sink.tables import is_conflict, open_dataset, translate
from pipelines.storage import TableRef

_ATTEMPTS = 30
log = logging.getLogger(__name__)


class StaleGroupError(RuntimeError):
    """A group was staged so long ago that maintenance may have removed its files."""


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
            StaleGroupError: a group waited too long for its commit.
            OSError: the store refuses; the table is as of its last commit.
        """
        started = time.perf_counter()
        self._lease.renew()
        self._refuse_stale(groups)
        dataset = open_dataset(self._table)
        for _ in range(_ATTEMPTS):
            self._ledger.record_missing(dataset)
            fresh = [group for group in groups if not self._is_settled(group)]
            if not fresh:
                return int(dataset.version)
            self._merge_rejects(fresh)
            landed = self._try_commit(dataset, fresh)
            if landed is not None:
                self._count(fresh, landed, time.perf_counter() - started)
                return landed
            time.sleep(random.uniform(0.0, 0.1))
            dataset = open_dataset(self._table)
        raise OSError(f"table {self._table}: {_ATTEMPTS} commits in a row met another writer's; try again later")

    def _refuse_stale(self, groups: Sequence[StagedGroup]) -> None:
        """A job that slept for hours (a suspended machine) wakes to files that may be gone; Lance does not look."""
        waited = time.time() - min((group.started for group in groups), default=time.time())
        if waited > STAGED_LIFE_S:
            raise StaleGroupError(
                f"table {self._table}: rows were staged {waited / 3600:.0f} hours ago and their files may have been "
                "cleaned up; start again: what is committed is kept, the rest will be embedded"
            )

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

    def _try_commit(self, dataset: lance.LanceDataset, groups: Sequence[StagedGroup]) -> int | None:
        """The version that the commit made, None where another writer came first."""
        new = [FragmentMetadata.from_json(text) for group in groups for text in group.fragments]
        old = [fragment.metadata for fragment in dataset.get_fragments()]
        claims = [claim for group in groups for claim in group.claims]
        transaction = lance.Transaction(
            read_version=dataset.version,
            operation=lance.LanceOperation.Merge(old + new, dataset.lance_schema),
            transaction_properties={CLAIMS_PROPERTY: encode_claims(claims)},
        )
        try:
            landed = lance.LanceDataset.commit(
                self._table.uri, transaction, storage_options=self._table.options, max_retries=0
            )
        except OSError as error:
            if is_conflict(error):
                return None
            raise translate(error, self._table.uri) from error
        return int(landed.version)

    def _count(self, groups: Sequence[StagedGroup], version: int, seconds: float) -> None:
        claims: list[Claim] = [claim for group in groups for claim in group.claims]
        self._ledger.count_in(claims, version)
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
