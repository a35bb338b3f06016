"""Each commit rewrites the list of all fragments, so it must bring a share of them. And a crash must stay cheap."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from pipelines.ingest.sink.queueing import CommitQueue, SinkLimits
from pipelines.ledger.rejects import REJECTS_SCHEMA


class Recorder:
    """Records how many rows each commit brought."""

    def __init__(self) -> None:
        self.commits: list[int] = []

    def commit(self, groups: Sequence[SimpleNamespace]) -> int:
        self.commits.append(sum(group.rows for group in groups))
        return len(self.commits)


def run(rows: int, table_rows: int = 0, **limits: int) -> tuple[list[int], list[int]]:
    """Rows of the commits, and of the groups, in a run of this many rows whose clock stands still."""
    recorder, groups = Recorder(), []
    queue = CommitQueue(recorder, SinkLimits(block_rows=1, commit_interval_s=1e9, **limits), table_rows)
    while queue.rows < rows:
        groups.append(queue.group_rows)
        queue.add(SimpleNamespace(rows=groups[-1], blocks=1, rejects=REJECTS_SCHEMA.empty_table()))
        queue.commit_if_due()
    queue.commit()
    return recorder.commits, groups


def test_a_billion_rows_land_in_some_thousand_commits_of_which_none_is_a_large_part() -> None:
    commits, groups = run(1_000_000_000)
    done = 0
    assert len(commits) < 1_500
    for rows in commits:
        assert rows <= max(65_536, (done + rows) / 256) + 65_536, "what a crash costs: a share of what is done"
        done += rows
    assert max(groups) == 65_536, "a staging task holds its group in memory"


def test_a_million_rows_are_committed_as_ever() -> None:
    commits, groups = run(1_000_000)
    assert set(groups) == {16_384}
    assert set(commits[:-1]) == {65_536}


def test_a_small_run_into_a_large_table_counts_the_rows_that_are_there() -> None:
    assert len(run(1_000_000, table_rows=1_000_000_000)[0]) == 1


@pytest.mark.parametrize("table_rows", [0, 1_000_000_000])
def test_what_the_user_says_a_crash_may_cost_holds_in_any_table(table_rows: int) -> None:
    commits, groups = run(10_000, table_rows, commit_rows=100)
    assert set(commits) == {100}
    assert set(groups) == {100}
    assert set(run(10_000, table_rows, fragment_rows=25, commit_rows=100)[1]) == {25}
