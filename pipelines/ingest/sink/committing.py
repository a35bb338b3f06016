"""The only committer: it turns staged groups into a version of the table, each record exactly once.

A decision made on one version of the table lands on that version or not at all (see `landing`). So a record that
another commit settled is never settled twice, whoever made that commit. Rows that new rows replace leave in the same
commit.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, field

import lance
from lance.fragment import FragmentMetadata

from pipelines.ingest.sink.fitting import StaleGroupError, check_schema_of
from pipelines.ingest.sink.landing import Lander, Step
from pipelines.ingest.sink.rejects import add_rejects, attempts_so_far, rejected_records, sweep_rejects
from pipelines.ingest.sink.staging import STAGED_LIFE_S, StagedGroup
from pipelines.ingest.sink.stale import StaleRow, StaleRows, removals_for, removals_of_shards, rows_of_records
from pipelines.ledger.claims import Change, Rejecting, file_of, removals_of
from pipelines.ledger.coverage import Coverage
from pipelines.ledger.ledger import Ledger
from pipelines.rows.pace import Pace
from pipelines.store.faults import fault
from pipelines.store.storage import TableRef
from pipelines.tables.lease import Lease
from pipelines.tables.opening import open_dataset, translate

# Below this many rows the share of rejects means little.
_ENOUGH_TO_TELL = 100
log = logging.getLogger(__name__)


class TooManyRejectsError(RuntimeError):
    """The job is going wrong: too large a share of its rows is rejected."""


class ClaimConflictError(RuntimeError):
    """Another driver settled part of a staged group; the group cannot be committed as it is."""


@dataclass
class Committed:
    """Totals of a committer so far.

    Attributes:
        commits: versions made.
        written: rows written to the table.
        rejected: reason → rows rejected.
        overlong: captions longer than the text tower reads.
        reused: vectors that were taken over from the table or from an actor's recent work.
        redone: rows, written and rejected, of staged groups that were dropped because another job had settled them.
        replaced: stale rows replaced by a successor.
        removed: stale rows removed without a successor.
        seconds: stage → seconds spent.
        pace: when blocks were ready, and the time that they took.
    """

    commits: int = 0
    written: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    overlong: int = 0
    reused: int = 0
    redone: int = 0
    replaced: int = 0
    removed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)


class Committer:
    """Commits staged groups of one table under its lease."""

    def __init__(
        self,
        table: TableRef,
        ledger: Ledger,
        lease: Lease,
        *,
        stale: StaleRows | None = None,
        max_reject_rate: float = 1.0,
    ) -> None:
        """Set up a committer.

        Args:
            table: the table to commit to.
            ledger: the table's ledger, reconciled under the lease.
            lease: the table's lease, renewed before each commit.
            stale: rows to replace, looked up in the table under the lease; None if there are none.
            max_reject_rate: the job stops above this share of rejects, once there are at least 100 rows.
        """
        self._table = table
        self._ledger = ledger
        self._lease = lease
        self._lander = Lander(table, ledger, lease)
        self._stale = stale or StaleRows(())
        self._max_reject_rate = max_reject_rate
        self._attempts = attempts_so_far(table, ledger.coverage)
        self.done = Committed()

    @property
    def coverage(self) -> Coverage:
        """What is committed, record by record."""
        return self._ledger.coverage

    def reopen(self, reasons: Collection[str], shards: Container[str]) -> int:
        """Mark records that were rejected for certain reasons as not settled.

        Their rejects no longer count. They stay until the run ends, so that the records keep their count of attempts.

        Args:
            reasons: the reasons to retry.
            shards: only records of these shards are reopened.

        Returns:
            The number of reopened records.

        Raises:
            LeaseHeldError: the lease was lost.
            OSError: the store refuses.
        """
        self._lease.renew()
        rejected = rejected_records(self._table, self._ledger.coverage, reasons)
        rejected = {record: attempts for record, attempts in rejected.items() if record[0] in shards}

        def decide(dataset: lance.LanceDataset, moved: bool) -> Step | None:
            records = [record for record in sorted(rejected) if self._ledger.coverage.has(*record)]
            if not records:
                return None
            # Some captions of a record may be written and others rejected; the whole record is repeated.
            leaving = rows_of_records(dataset, set(records))
            removals = removals_of([*records, *((row.shard, row.position) for row in leaving)])
            return Step(change=Change(removals=tuple(removals)), leaving=leaving)

        _, step = self._lander.land(decide)
        self._attempts |= {record: attempts + 1 for record, attempts in rejected.items()}
        return sum(removal.stop - removal.start for removal in step.change.removals) if step else 0

    def commit(self, groups: Sequence[StagedGroup]) -> int:
        """Land the groups in one version of the table; return that version.

        The rejects are written first. A crash in between leaves rejects that do not count.

        Raises:
            LeaseHeldError: the lease was lost.
            ClaimConflictError: another driver settled part of a group.
            StaleGroupError: a group waited too long for its commit, or its files are gone.
            SchemaChangedError: the table has a new column that these rows cannot fill.
            TooManyRejectsError: more rows were rejected than the job allows.
            OSError: the store refuses; the table is as of its last commit.
        """
        started = time.perf_counter()
        self._lease.renew()
        self._refuse_stale(groups)
        self._check_reject_rate(groups)
        fresh: list[StagedGroup] = []

        def decide(dataset: lance.LanceDataset, moved: bool) -> Step | None:
            fresh[:] = [group for group in groups if not self._is_settled(group)]
            if not fresh:
                return None
            fragments = [FragmentMetadata.from_json(text) for group in fresh for text in group.fragments]
            check_schema_of(dataset, fragments, self._table)
            self._add_rejects(dataset, fresh)
            self._stale.look_up_again_if_moved(dataset, surely=moved)
            leaving = self._stale.succeeded_by(row_id for group in fresh for row_id in group.successors)
            return Step(change=_change_of(fresh, leaving), fragments=fragments, leaving=leaving)

        dataset, step = self._lander.land(decide)
        for group in groups:
            if step is None or group not in fresh:
                self.done.redone += group.rows + group.rejects.num_rows
        if step is not None:
            self._count(fresh, time.perf_counter() - started)
            self._stale.left_at(step.leaving, dataset)
            self.done.replaced += len(step.leaving)
        return int(dataset.version)

    def sweep(self) -> int:
        """Remove all remaining stale rows in one version, then all rejects that do not count; return the version.

        Raises:
            LeaseHeldError: the lease was lost.
            OSError: the store refuses; the table is as of its last commit.
        """
        self._lease.renew()
        version = self._sweep_stale_rows()
        fault("before_reject_sweep")
        self._lease.check(open_dataset(self._table))
        sweep_rejects(self._table, self._ledger.coverage)
        return version

    def _sweep_stale_rows(self) -> int:
        if not self._stale.shards:
            return int(open_dataset(self._table).version)
        fault("before_sweep")

        def decide(dataset: lance.LanceDataset, moved: bool) -> Step | None:
            self._stale.look_up_again_if_moved(dataset, surely=moved)
            coverage = self._ledger.coverage
            removals = tuple(removals_of_shards(coverage, self._stale.shards))
            names = {file_of(removal.shard) for removal in removals}
            # The tombstones name their files.
            files = {name: coverage.files[name] for name in sorted(names) if name in coverage.files}
            return Step(change=Change(removals=removals, files=files), leaving=self._stale.all()) if removals else None

        dataset, step = self._lander.land(decide)
        if step is not None:
            self._stale.left_at(step.leaving, dataset)
            self.done.commits += 1
            self.done.removed += len(step.leaving)
        return int(dataset.version)

    def _check_reject_rate(self, groups: Sequence[StagedGroup]) -> None:
        """Stop a failing job before its rejects are committed.

        Raises:
            TooManyRejectsError: the share of rejects is too large; names the most common reason.
        """
        counts = Counter(self.done.rejected)
        for group in groups:
            counts.update(group.rejects["reason"].to_pylist())
        rejected = sum(counts.values())
        rows = rejected + self.done.written + sum(group.rows for group in groups)
        if rows >= _ENOUGH_TO_TELL and rejected > self._max_reject_rate * rows:
            reason, n = counts.most_common(1)[0]
            raise TooManyRejectsError(
                f"max_reject_rate {self._max_reject_rate:g}: {rejected} of {rows} rows were rejected ({n} as "
                f"{reason!r}); table {self._table} is as of its last commit. Fix the corpus or allow more; run again"
            )

    def _refuse_stale(self, groups: Sequence[StagedGroup]) -> None:
        """Stop if a group is too old. A job that slept for hours (a suspended machine) wakes to files that may be gone.

        Lance does not check that the files exist.

        Raises:
            StaleGroupError: a group was staged over 12 hours ago.
        """
        waited = time.time() - min((group.started for group in groups), default=time.time())
        if waited > STAGED_LIFE_S:
            raise StaleGroupError(
                f"table {self._table}: rows were staged {waited / 3600:.0f} hours ago and their files may have been "
                "cleaned up; start again: committed rows are kept, the rest will be embedded"
            )

    def _is_settled(self, group: StagedGroup) -> bool:
        """Whether an earlier commit settled the whole group.

        Raises:
            ClaimConflictError: an earlier commit settled part of it.
        """
        overlap = sum(self._ledger.coverage.overlap(claim) for claim in group.claims)
        if overlap == 0:
            return False
        if overlap == sum(claim.stop - claim.start for claim in group.claims):
            log.warning("dropped a staged group of %d rows: the table already holds them", group.rows)
            return True
        raise ClaimConflictError(
            f"table {self._table}: another job committed {overlap} records of a group that this one staged; "
            "start again: committed rows are kept, the rest will be embedded"
        )

    def _add_rejects(self, dataset: lance.LanceDataset, groups: Sequence[StagedGroup]) -> None:
        fault("before_rejects")
        try:
            for group in groups:
                add_rejects(self._table, dataset, group.rejects, self._attempts)
        except OSError as error:
            raise translate(error, self._table.sibling("rejects").uri) from error
        fault("after_rejects")

    def _count(self, groups: Sequence[StagedGroup], seconds: float) -> None:
        done = self.done
        done.commits += 1
        done.seconds["commit"] = done.seconds.get("commit", 0.0) + seconds
        for group in groups:
            done.written += group.rows
            done.overlong += group.overlong
            done.reused += group.reused
            done.pace.add(group.times)
            for name, value in group.seconds.items():
                done.seconds[name] = done.seconds.get(name, 0.0) + value
            for reason in group.rejects["reason"].to_pylist():
                done.rejected[reason] = done.rejected.get(reason, 0) + 1


def _change_of(groups: Sequence[StagedGroup], leaving: Sequence[StaleRow]) -> Change:
    """What a commit of these groups does."""
    return Change(
        claims=tuple(claim for group in groups for claim in group.claims),
        removals=tuple(removals_for(leaving)),
        rejecting=tuple(
            Rejecting(shard=claim.shard, start=claim.start, stop=claim.stop, token=group.token)
            for group in groups
            for claim in group.claims
            if claim.rejected
        ),
        files={name: uri for group in groups for name, uri in group.files.items()},
    )
