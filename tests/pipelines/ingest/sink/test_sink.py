"""The sink's promise: each record in the table exactly once, whichever driver dies, replays or races."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from lance.fragment import FragmentMetadata, write_fragments
from sink_tools import SCHEMA, TOWER, block, committer_of, row_ids, stage

from encoders.protocol import EncoderCard
from pipelines.ingest.sink.committing import ClaimConflictError, Committer
from pipelines.ingest.sink.staging import stage_blocks
from pipelines.ingest.sink.stale import StaleRow, leaving_fragments
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.reading import read_rejects
from pipelines.rows.contract import ROW_ID
from pipelines.store.storage import TableRef
from pipelines.tables.lease import LEASE_KEY, Holder, Lease, LeaseHeldError
from pipelines.tables.opening import create_dataset, is_conflict, open_dataset
from pipelines.tables.provenance import EncoderMismatchError, Provenance
from pipelines.tables.schemas import check_schema
from pipelines.tables.swap import swap_operation


@pytest.fixture
def table(tmp_path: Path) -> TableRef:
    ref = TableRef.parse(str(tmp_path / "db" / "t"))
    create_dataset(ref, SCHEMA)
    return ref


def test_rows_in_equal_rows_written_and_rejected(table: TableRef) -> None:
    committer = committer_of(table)
    committer.commit([stage(table, block("a", 0, 10, rejected=frozenset({3, 7}), end=10))])

    assert row_ids(table) == sorted(f"a-{i}" for i in range(10) if i not in (3, 7))
    assert read_rejects(table).by_reason == {"corrupt_image": 2}
    assert (committer.done.written, committer.done.rejected) == (8, {"corrupt_image": 2})
    assert {row["row_id"] for row in read_rejects(table).rows} == {"a-3", "a-7"}
    assert Ledger.reconcile(table).coverage.is_complete("a", None)


def test_a_corpus_without_some_of_the_tables_columns_leaves_them_null(tmp_path: Path) -> None:
    """A later delivery may lack a column; its rows belong in the table all the same."""
    ref = TableRef.parse(str(tmp_path / "db" / "t"))
    schema = SCHEMA.append(pa.field("price", pa.float64())).append(pa.field("thumbnail", pa.binary()))
    create_dataset(ref, schema)
    committer_of(ref).commit([stage_blocks(ref, schema, block("a", 0, 3, end=3))])
    rows = open_dataset(ref).to_table()
    assert rows.num_rows == 3
    assert rows["price"].null_count == rows["thumbnail"].null_count == 3


def test_a_group_that_is_committed_twice_lands_once(table: TableRef) -> None:
    committer = committer_of(table)
    group = stage(table, block("a", 0, 10))
    committer.commit([group])
    version = open_dataset(table).version
    committer.commit([group])

    assert open_dataset(table).version == version
    assert len(row_ids(table)) == 10


def test_a_driver_that_died_between_commit_and_record_is_found_out(table: TableRef) -> None:
    committer = committer_of(table)
    committer.commit([stage(table, block("a", 0, 5))])
    behind = open_dataset(table.sibling("ledger")).version
    committer.commit([stage(table, block("a", 5, 10, end=10))])
    open_dataset(table.sibling("ledger")).checkout_version(behind).restore()

    ledger = Ledger.reconcile(table)
    assert ledger.coverage.is_complete("a", None)
    # Caught-up changes are written together with later ones.
    open_dataset(table).update_config({"any": "newer version"})
    ledger.record_missing(open_dataset(table))
    assert Ledger.reconcile(table).coverage.is_complete("a", None)
    assert Ledger.reconcile(table).coverage.rows("a") == 10


def test_the_ledger_is_rebuilt_from_the_rows_when_it_and_the_history_are_gone(table: TableRef) -> None:
    committer = committer_of(table)
    committer.commit([stage(table, block("a", 0, 5, rejected=frozenset({2})))])
    committer.commit([stage(table, block("b", 0, 3, end=3))])
    open_dataset(table).cleanup_old_versions(older_than=__import__("datetime").timedelta(0))
    import shutil

    shutil.rmtree(table.sibling("ledger").uri)
    coverage = Ledger.reconcile(table).coverage
    assert coverage.ranges("a") == [(0, 5)]
    assert coverage.is_complete("b", 3)


def test_a_zombie_with_a_stale_view_cannot_commit_a_record_twice(table: TableRef) -> None:
    """The zombie reconciled, slept through its lease, and wakes to commit what its successor has committed."""
    zombie = committer_of(table)
    group = stage(table, block("a", 0, 10))
    expire(table)
    committer_of(table).commit([stage(table, block("a", 0, 10))])
    with pytest.raises(LeaseHeldError, match="another job took it over"):
        zombie.commit([group])
    assert len(row_ids(table)) == 10


def test_a_group_of_which_another_driver_settled_a_part_is_refused(table: TableRef) -> None:
    committer = committer_of(table)
    committer.commit([stage(table, block("a", 0, 10))])
    with pytest.raises(ClaimConflictError, match="start again"):
        committer.commit([stage(table, block("a", 5, 15))])
    assert len(row_ids(table)) == 10


@pytest.mark.parametrize("has_rows", [False, True])
def test_a_commit_that_was_decided_before_a_takeover_cannot_land_after_it(
    table: TableRef, monkeypatch: pytest.MonkeyPatch, *, has_rows: bool
) -> None:
    """Suspended between its decision and its commit, the first driver would settle records whose rejects are gone."""
    first = committer_of(table)
    if has_rows:
        first.commit([stage(table, block("z", 0, 3, end=3))])
    attempt = first._lander._try
    taken: list[Lease] = []

    def suspended(*arguments: Any) -> Any:
        if not taken:
            expire(table)
            taken.append(Lease.acquire(table))
        return attempt(*arguments)

    monkeypatch.setattr(first._lander, "_try", suspended)
    with pytest.raises(LeaseHeldError, match="another job took it over"):
        first.commit([stage(table, block("a", 0, 5, rejected=frozenset({1}), end=5))])
    assert row_ids(table) == (["z-0", "z-1", "z-2"] if has_rows else [])
    assert read_rejects(table).by_reason == {}


def expire(table: TableRef) -> None:
    """Let the lease run out."""
    dataset = open_dataset(table)
    holder = Holder.from_json(dataset.config()[LEASE_KEY])
    dataset.update_config({LEASE_KEY: replace(holder, expires=time.time() - 1).to_json()})


def test_a_commit_that_meets_another_writer_is_decided_again(table: TableRef, monkeypatch: pytest.MonkeyPatch) -> None:
    committer = committer_of(table)
    rival = Committer(table, Ledger.reconcile(table), committer._lease)
    attempt = committer._lander._try
    raced: list[int] = []

    def racing(dataset: lance.LanceDataset, *rest: Any) -> Any:
        if not raced:
            raced.append(rival.commit([stage(table, block("b", 0, 5))]))
        return attempt(dataset, *rest)

    monkeypatch.setattr(committer._lander, "_try", racing)
    committer.commit([stage(table, block("a", 0, 5))])
    assert len(row_ids(table)) == 10


def operation(dataset: lance.LanceDataset, kind: str) -> lance.LanceOperation.BaseOperation:
    """The operation of a commit: `adds` only adds rows, `nothing` only records a change.

    `first`, `third` and `all of the first` also remove rows of that fragment. `merge` is the operation that earlier
    versions of this software used.
    """
    uri = str(dataset.uri)
    leaving = {"first": [("a", 0, 0)], "third": [("c", 0, 2)], "all of the first": [("a", i, 0) for i in range(3)]}
    stale = [StaleRow(f"{shard}-{at}", shard, at, fragment) for shard, at, fragment in leaving.get(kind, [])]
    rows = dataset.to_table().slice(0, 1)
    new = [] if kind == "nothing" else list(write_fragments(rows, uri, mode="append"))
    if kind == "merge":
        old = [fragment.metadata for fragment in dataset.get_fragments()]
        return lance.LanceOperation.Merge(old + new, dataset.lance_schema)
    return swap_operation(dataset, new, *leaving_fragments(dataset, stale))


_KINDS = ("adds", "first", "third", "all of the first", "nothing", "merge")


@pytest.mark.parametrize("second", _KINDS)
@pytest.mark.parametrize("first", _KINDS)
def test_of_two_commits_that_were_decided_on_one_version_one_lands(table: TableRef, first: str, second: str) -> None:
    """Exactly-once depends on it: Lance would rebase the second commit, and both would claim the same records."""
    committer = committer_of(table)
    for shard in "abc":
        committer.commit([stage(table, block(shard, 0, 3, end=3))])
    dataset = open_dataset(table)
    both = [lance.Transaction(read_version=dataset.version, operation=operation(dataset, k)) for k in (first, second)]
    lance.LanceDataset.commit(table.uri, both[0], max_retries=0)
    with pytest.raises(Exception, match="conflict") as refused:
        lance.LanceDataset.commit(table.uri, both[1], max_retries=0)
    assert is_conflict(refused.value)


def test_of_two_first_commits_one_lands(table: TableRef) -> None:
    dataset = open_dataset(table)
    new = [FragmentMetadata.from_json(text) for text in stage(table, block("a", 0, 3)).fragments]
    both = [lance.Transaction(read_version=dataset.version, operation=swap_operation(dataset, new)) for _ in range(2)]
    lance.LanceDataset.commit(table.uri, both[0], max_retries=0)
    with pytest.raises(Exception, match="conflict"):
        lance.LanceDataset.commit(table.uri, both[1], max_retries=0)


def test_a_commit_does_not_write_the_list_of_all_fragments(table: TableRef) -> None:
    """With a billion rows each commit would otherwise carry some ten thousand fragments, three times over."""
    committer = committer_of(table)
    for start in range(0, 40, 5):
        version = committer.commit([stage(table, block("a", start, start + 5))])
    transaction = open_dataset(table).read_transaction(version)
    assert transaction is not None
    done = transaction.operation
    assert isinstance(done, lance.LanceOperation.Update)
    assert (len(done.updated_fragments), len(done.new_fragments)) == (1, 1)
    assert len(row_ids(table)) == 40


def test_indexes_survive_a_commit(table: TableRef) -> None:
    committer = committer_of(table)
    committer.commit([stage(table, block("a", 0, 50))])
    open_dataset(table).create_scalar_index(ROW_ID, "BTREE")
    committer.commit([stage(table, block("a", 50, 60))])
    dataset = open_dataset(table)
    assert [index.name for index in dataset.describe_indices()] == ["row_id_idx"]
    assert dataset.scanner(filter="row_id = 'a-55'").to_table().num_rows == 1
    assert dataset.stats.index_stats("row_id_idx")["num_indexed_rows"] == 50


def test_a_second_driver_is_told_who_holds_the_lease(table: TableRef) -> None:
    lease = Lease.acquire(table)
    with pytest.raises(LeaseHeldError, match=r"process \d+ on .*wait for it"):
        Lease.acquire(table)
    lease.release()
    Lease.acquire(table).release()


def hold(table: TableRef, **process: Any) -> Holder:
    """A lease of some other process, unexpired."""
    mine = Holder.this_process("other")
    other = replace(mine, process=replace(mine.process, **process))
    open_dataset(table).update_config({LEASE_KEY: other.to_json()})
    return other


def test_the_lease_of_a_dead_process_is_taken_over_at_once(table: TableRef) -> None:
    hold(table, started=1.0)
    lease = Lease.acquire(table)
    assert json.loads(open_dataset(table).config()[LEASE_KEY])["job"] != "other"
    lease.release()


@pytest.mark.parametrize(
    "process",
    [
        {"host": "elsewhere", "boot": "another boot"},
        {"namespace": "pid:[1]", "pid": 1},
        {"boot": "", "namespace": ""},
    ],
    ids=["another host", "another container of the same host name", "a lease of an older version"],
)
def test_a_lease_whose_holder_may_live_is_waited_for_until_it_expires(table: TableRef, process: dict[str, Any]) -> None:
    """In two containers both drivers may be process 1: neither may take the other for dead."""
    other = hold(table, **process)
    with pytest.raises(LeaseHeldError, match=other.process.host):
        Lease.acquire(table)
    expire(table)
    Lease.acquire(table).release()


def test_a_lease_that_came_back_with_an_old_version_stops_nobody(table: TableRef) -> None:
    lease = Lease.acquire(table)
    held = open_dataset(table).version
    lease.release()
    open_dataset(table).checkout_version(held).restore()
    Lease.acquire(table).release()


@pytest.mark.parametrize("shift_s", [-3600.0, 11 * 60.0])
def test_a_clock_that_is_wrong_costs_no_row(table: TableRef, monkeypatch: pytest.MonkeyPatch, shift_s: float) -> None:
    committer = committer_of(table)
    committer.commit([stage(table, block("a", 0, 5))])
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + shift_s)
    committer.commit([stage(table, block("a", 5, 10, end=10))])
    assert len(row_ids(table)) == 10


def test_a_table_of_another_encoder_is_refused_by_name(table: TableRef) -> None:
    other = EncoderCard(name="other", spec="other", towers=(replace(TOWER, weights="x"),))
    schema = SCHEMA.with_metadata(Provenance(encoder=other, modalities=("text",)).to_metadata())
    with pytest.raises(EncoderMismatchError, match=r"made by 'toy'.*not by 'other'.*--encoder toy"):
        check_schema(open_dataset(table).schema, schema, table)


def test_a_missing_table_names_those_that_are_there(table: TableRef) -> None:
    with pytest.raises(FileNotFoundError, match=r"nosuch: not found; tables in .*: t"):
        open_dataset(TableRef.parse(f"{table.database}/nosuch"))
