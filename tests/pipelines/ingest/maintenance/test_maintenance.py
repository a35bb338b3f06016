"""Maintenance removes what nobody needs. Anything it removes beyond that is lost for good."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from corpora import pairs, write_parquet
from sink_tools import SCHEMA, block
from stores import BUCKET, moto, options

from jobs.cli import app
from jobs.embed import EmbedConfig
from jobs.embed import run as embed
from jobs.maintain import MaintainConfig, run
from jobs.plan import PlanConfig
from jobs.plan import run as plan
from pipelines.ingest.maintenance.maintain import dry_run, maintain
from pipelines.ingest.maintenance.versions import Retention, StoredFile, Version, orphaned_files, removable_versions
from pipelines.ingest.sink.committing import Committer, StaleGroupError
from pipelines.ingest.sink.staging import STAGED_LIFE_S, stage_blocks
from pipelines.ledger.ledger import Ledger
from pipelines.rows.contract import CAPTION, ROW_ID
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.lease import LEASE_KEY, Holder, Lease, LeaseHeldError
from pipelines.tables.opening import create_dataset, open_dataset
from pipelines.tables.promotion import answering, promote

NEWEST_ONLY = Retention(keep_versions=1, keep_s=None, min_age_s=3600.0)
DAY_S = 86_400.0


@pytest.fixture
def table(tmp_path: Path) -> TableRef:
    """Twelve commits of the real sink, one of them with a reject."""
    ref = TableRef.parse(str(tmp_path / "db" / "t"))
    fill(ref)
    return ref


def fill(ref: TableRef) -> None:
    schema = SCHEMA.insert(1, pa.field(CAPTION, pa.string()))
    create_dataset(ref, schema)
    lease = Lease.acquire(ref)
    committer = Committer(ref, Ledger.reconcile(ref), lease)
    for i in range(12):
        rejected = frozenset({i * 10 + 3}) if i == 4 else frozenset()
        rows = block("a", i * 10, i * 10 + 10, rejected=rejected, end=120)
        committer.commit([stage_blocks(ref, schema, rows)])
    lease.release()


def rows_of(ref: TableRef) -> list[dict[str, object]]:
    return open_dataset(ref).to_table().sort_by(ROW_ID).to_pylist()


def orphan(ref: TableRef, *, age_s: float) -> set[Path]:
    """The remains of a killed job: staged files that no version names."""
    before = set(Path(ref.uri, "data").iterdir())
    stage_blocks(ref, open_dataset(ref).schema, block("z", 0, 5))
    made = set(Path(ref.uri, "data").iterdir()) - before
    for path in made:
        os.utime(path, (time.time() - age_s,) * 2)
    return made


def test_the_same_rows_in_fewer_files_and_versions(table: TableRef) -> None:
    rows, coverage = rows_of(table), Ledger.reconcile(table).coverage
    old, young = orphan(table, age_s=2 * 3600), orphan(table, age_s=600)
    done = {upkeep.table: upkeep for upkeep in maintain(table, NEWEST_ONLY)}

    assert rows_of(table) == rows
    assert set(done) == {"t", "t_rejects", "t_ledger"}
    for name, upkeep in done.items():
        assert upkeep.after is not None
        # The ledger also records what maintenance itself did.
        assert upkeep.after.fragments == (2 if name == "t_ledger" else 1), name
        assert upkeep.after.versions < upkeep.before.versions or upkeep.before.versions == 1, name
        assert upkeep.after.files <= upkeep.before.files, name
    assert (done["t"].orphans_removed, done["t"].rows, done["t"].small_fragments) == (1, 119, 12)
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in young), "a running job may commit it yet"
    after = Ledger.reconcile(table).coverage
    assert (after.ranges("a"), after.rows("a")) == (coverage.ranges("a"), coverage.rows("a")) == ([(0, 120)], 120)
    assert after.is_complete("a", None), "which record is the last is known from the ledger alone"
    assert open_dataset(table.sibling("rejects")).count_rows() == 1


def test_indexes_are_complete_and_point_to_the_same_rows(table: TableRef) -> None:
    """Compaction moves rows; an index that did not follow would answer with other rows."""
    open_dataset(table).create_scalar_index(ROW_ID, "BTREE")
    open_dataset(table).create_scalar_index(CAPTION, "INVERTED")
    committer = Committer(table, Ledger.reconcile(table), Lease.acquire(table))
    committer.commit([stage_blocks(table, open_dataset(table).schema, block("b", 0, 30, end=30))])
    committer._lease.release()
    upkeep = maintain(table, NEWEST_ONLY)[0]

    assert {(index.name, index.unindexed_rows, index.indexed_rows) for index in upkeep.indexes} == {
        ("row_id_idx", 0, 149),
        ("caption_idx", 0, 149),
    }
    dataset = open_dataset(table)
    for row_id in ("a-7", "b-29"):
        assert dataset.to_table(filter=f"row_id = '{row_id}'")[ROW_ID].to_pylist() == [row_id]
    found = dataset.to_table(full_text_query="29", columns=[ROW_ID])[ROW_ID].to_pylist()
    assert sorted(found) == ["a-29", "b-29"]


def test_tags_and_promotions_outlive_it(table: TableRef) -> None:
    shadow = TableRef.parse(f"{table.database}/shadow")
    fill(shadow)
    promoted = int(open_dataset(shadow).version) - 3
    promote(table, shadow, promoted, "better")
    expected = lance.dataset(shadow.uri, version=promoted).to_table().to_pylist()
    for ref in (table, shadow):
        maintain(ref, NEWEST_ONLY)

    ref, dataset = answering(table)
    assert (ref, dataset.version) == (shadow, promoted)
    assert dataset.to_table().to_pylist() == expected
    versions = [version["version"] for version in open_dataset(shadow).versions()]
    assert promoted in versions
    assert promoted - 1 not in versions


def test_a_job_that_holds_the_lease_is_named_and_nothing_changes(table: TableRef) -> None:
    mine = Holder.this_process("other")
    other = replace(mine, process=replace(mine.process, host="elsewhere", pid=4242, boot="another boot"))
    open_dataset(table).update_config({LEASE_KEY: other.to_json()})
    files = sorted(Path(table.uri).rglob("*"))
    with pytest.raises(LeaseHeldError, match="process 4242 on elsewhere"):
        maintain(table, NEWEST_ONLY)
    assert sorted(Path(table.uri).rglob("*")) == files


def test_a_dry_run_counts_what_the_run_then_does_and_changes_nothing(table: TableRef) -> None:
    orphan(table, age_s=2 * 3600)
    files = sorted(Path(table.database).rglob("*"))
    planned = dry_run(table, NEWEST_ONLY)
    assert sorted(Path(table.database).rglob("*")) == files
    done = maintain(table, NEWEST_ONLY)
    for before, after in zip(planned, done, strict=True):
        # The run's own commits are more versions to remove, and more rows of the ledger.
        assert (before.table, before.before.files) == (after.table, before.before.files)
        assert before.versions_removed <= after.versions_removed
    assert [(p.orphans_removed, p.small_fragments) for p in planned[:2]] == [(1, 12), (0, 0)]


def test_versions_that_the_ledger_has_not_recorded_stay(table: TableRef) -> None:
    """Their transactions are the only record of them: a driver died before it wrote the ledger."""
    ledger = open_dataset(table.sibling("ledger"))
    ledger.checkout_version(ledger.version - 3).restore()
    maintain(table, NEWEST_ONLY)
    assert Ledger.reconcile(table).coverage.is_complete("a", None)


def test_a_group_that_was_staged_too_long_ago_is_not_committed(table: TableRef) -> None:
    """Its files may have been removed as orphans, and Lance commits file names without checking."""
    group = stage_blocks(table, open_dataset(table).schema, block("c", 0, 5))
    committer = Committer(table, Ledger.reconcile(table), Lease.acquire(table))
    with pytest.raises(StaleGroupError, match="start again"):
        committer.commit([replace(group, started=time.time() - STAGED_LIFE_S - 1)])
    assert open_dataset(table).count_rows() == 119


def test_each_rule_keeps_versions() -> None:
    versions = [Version(number=n, made=n * DAY_S) for n in range(1, 11)]
    now = 11 * DAY_S

    def removed(keep_versions: int | None, keep_days: float | None, *tagged: int, recorded: int = 10) -> list[int]:
        keep_s = None if keep_days is None else keep_days * DAY_S
        rules = Retention(keep_versions=keep_versions, keep_s=keep_s, min_age_s=0)
        return removable_versions(versions, rules, tagged=tagged, recorded=recorded, now=now)

    assert removed(3, None) == [1, 2, 3, 4, 5, 6, 7]
    assert removed(None, 4.5) == [1, 2, 3, 4, 5, 6]
    assert removed(8, 4.5) == [1, 2], "what one rule keeps the other does not remove"
    assert removed(1, 0.0, 1, 5) == [2, 3, 4, 6, 7, 8, 9]
    assert removed(1, None, recorded=3) == [1, 2, 3]
    assert removed(None, 0.0)[-1] == 9, "the newest version always stays"


def test_only_old_data_files_that_no_version_names_are_orphans() -> None:
    def stored(path: str, age_s: float) -> StoredFile:
        return StoredFile(path=path, size=1, modified=1000 - age_s)

    present = [
        stored("data/a.lance", 500),
        stored("data/b.lance", 500),
        stored("data/c.lance", 50),
        stored("_indices/x/d.lance", 500),
        stored("_versions/1.manifest", 500),
    ]
    assert [f.path for f in orphaned_files(present, {"data/a.lance"}, 100, now=1000)] == ["data/b.lance"]


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with moto() as endpoint:
        yield endpoint


@pytest.mark.slow
def test_on_an_object_store(store: str) -> None:
    ref = TableRef.parse(f"s3://{BUCKET}/db/t", Storage.from_options(options(store)))
    fill(ref)
    stage_blocks(ref, open_dataset(ref).schema, block("z", 0, 5))
    rows = rows_of(ref)
    first = maintain(ref, NEWEST_ONLY)[0]
    assert first.orphans_removed == 0, "its file is young"
    done = maintain(ref, replace(NEWEST_ONLY, min_age_s=0.0))[0]
    assert done.orphans_removed == 1
    assert rows_of(ref) == rows
    assert Ledger.reconcile(ref).coverage.is_complete("a", None)


@pytest.mark.usefixtures("ray_session")
def test_embed_skips_everything_afterwards(tmp_path: Path) -> None:
    """In a table whose history is gone, only the ledger knows what is done."""
    write_parquet(tmp_path / "c" / "a.parquet", pairs(150), row_group_rows=25)
    config = EmbedConfig(
        corpus=str(tmp_path / "c"), table=str(tmp_path / "db" / "t"), encoder="fake", columns={"key": "id"},
        commit_rows=25, fragment_rows=25,
    )  # fmt: skip
    first = embed(config)
    assert first.commits > 2
    ref = TableRef.parse(config.table)
    rows = rows_of(ref)
    report = run(MaintainConfig(table=config.table, keep_versions=1))
    assert "no indexes" in report.summary()
    assert json.loads(json.dumps(report.to_dict()))["tables"][0]["rows"] == 150
    planned = plan(PlanConfig(**config.model_dump())).forecast
    assert (planned.rows_to_embed, planned.rows_skipped, planned.rows_gone, planned.sample) == (0, 150, 0, None)
    again = embed(config)
    assert (again.rows_in, again.skipped, again.commits) == (0, 150, 0)
    assert rows_of(ref) == rows
    write_parquet(tmp_path / "c" / "b.parquet", pairs(170)[150:])
    assert plan(PlanConfig(**config.model_dump())).forecast.rows_to_embed == 20
    assert embed(config).written == 20
    (tmp_path / "c" / "b.parquet").unlink()
    assert plan(PlanConfig(**config.model_dump())).forecast.rows_gone == 20


def test_the_command_is_there() -> None:
    assert app["maintain"]
