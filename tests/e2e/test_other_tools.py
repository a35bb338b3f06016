"""Exactly once, whatever people do to a table between and during runs: by lancedb, by copying folders, by killing.

After each story, every record of the corpus is one row or one reject, with the vector of its caption.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engines import on_engine

from jobs.embed import EmbedConfig
from jobs.embed import run as embed
from jobs.maintain import MaintainConfig
from jobs.maintain import run as maintain
from jobs.rejects import RetryConfig, retry
from jobs.sync import SyncConfig
from jobs.sync import run as sync
from pipelines.ingest.embed_report import EmbedReport
from pipelines.ingest.sink import landing
from pipelines.ingest.sink.fitting import SchemaChangedError, StaleGroupError
from pipelines.ledger.reading import read_rejects
from pipelines.store import faults
from pipelines.store.faults import VARIABLE, InjectedFaultError
from pipelines.store.storage import TableRef
from pipelines.tables.lease import LeaseHeldError

pytestmark = pytest.mark.usefixtures("engine")
_SMALL = {"encoder": "fake", "block_rows": 5, "fragment_rows": 10, "commit_rows": 20}
_SLOW = pytest.mark.slow
_KEYED = {"columns": {"key": "id"}}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "db" / "t"


def write(path: Path, ids: range, *, bad: Callable[[int], bool] = lambda i: False, note: str = "") -> Path:
    """A file of captions; the bad ones are null, and become rejects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    captions = [None if bad(i) else f"{note}caption {i}" for i in ids]
    pq.write_table(pa.table({"id": [f"{i:04d}" for i in ids], "caption": captions}), path, row_group_size=20)
    return path


def run(corpus: Path, place: Path, **more: Any) -> EmbedReport:
    return embed(EmbedConfig(**{"corpus": str(corpus), "table": str(place), **_SMALL, **_KEYED, **on_engine(), **more}))


def run_sync(corpus: Path, place: Path, **more: Any) -> EmbedReport:
    given = {
        "corpus": str(corpus),
        "table": str(place),
        "max_delete_rate": 1,
        **_SMALL,
        **_KEYED,
        **on_engine(),
        **more,
    }
    return sync(SyncConfig(**given))


def killed(monkeypatch: pytest.MonkeyPatch, point: str, work: Callable[[], Any]) -> None:
    """Run until a fault point, and no further."""
    faults._passes.clear()
    monkeypatch.setenv(VARIABLE, point)
    with pytest.raises(InjectedFaultError):
        work()
    monkeypatch.delenv(VARIABLE)


def rows(place: Path) -> pa.Table:
    return lance.dataset(f"{place}.lance").to_table()


def rejected(place: Path) -> int:
    return sum(read_rejects(TableRef.parse(str(place))).by_reason.values())


def assert_whole(place: Path, ids: range, *, rejects: int = 0) -> None:
    """Each record once: this checker shares no code with the sink."""
    found = Counter(rows(place)["row_id"].to_pylist())
    assert max(found.values(), default=1) == 1, "a row stands twice"
    assert len(found) + rejected(place) == len(ids)
    assert rejected(place) == rejects
    assert set(found) <= {f"{i:04d}" for i in ids}
    vectors = {row["row_id"]: row["text_vector"] for row in rows(place).select(["row_id", "text_vector"]).to_pylist()}
    assert all(vector is not None for vector in vectors.values())


def database(place: Path) -> lancedb.DBConnection:
    return lancedb.connect(str(place.parent))


# The ledger belongs to a history, not to a name.


def test_a_dropped_table_is_filled_again_also_after_a_kill(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write(tmp_path / "a.parquet", range(60), bad=lambda i: i % 10 == 0)
    run(corpus, place)
    database(place).drop_table("t")
    killed(monkeypatch, "after_commit", lambda: run(corpus, place))
    run(corpus, place)
    assert_whole(place, range(60), rejects=6)


@_SLOW
def test_another_corpus_in_a_table_made_anew(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(write(tmp_path / "a.parquet", range(60)), place)
    database(place).drop_table("t")
    other = write(tmp_path / "b.parquet", range(100, 150))
    killed(monkeypatch, "after_commit", lambda: run(other, place))
    run(other, place)
    assert_whole(place, range(100, 150))


@pytest.mark.parametrize(
    "cleanup",
    [pytest.param(False, id="restored"), pytest.param(True, id="restored and cleaned up", marks=_SLOW)],
)
def test_a_restored_table_gets_back_what_it_lost(place: Path, tmp_path: Path, *, cleanup: bool) -> None:
    corpus = tmp_path / "c"
    write(corpus / "a.parquet", range(40), bad=lambda i: i == 7)
    run(corpus, place)
    version = lance.dataset(f"{place}.lance").version
    write(corpus / "b.parquet", range(40, 80), bad=lambda i: i == 44)
    run(corpus, place)
    table = database(place).open_table("t")
    table.restore(version)
    if cleanup:
        table.optimize(cleanup_older_than=timedelta(0))
    run(corpus, place)
    assert_whole(place, range(80), rejects=2)
    assert run(corpus, place).skipped == 80


@_SLOW
def test_a_backup_put_back_and_a_table_renamed_over_another(place: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "c"
    write(corpus / "a.parquet", range(40))
    run(corpus, place)
    backup = shutil.copytree(f"{place}.lance", tmp_path / "backup")
    write(corpus / "b.parquet", range(40, 80))
    run(corpus, place)

    shutil.rmtree(f"{place}.lance")
    shutil.copytree(backup, f"{place}.lance")
    for _ in range(12):  # its version numbers overtake those that the ledger knows
        lance.dataset(f"{place}.lance").update_config({"any": "thing"})
    run(corpus, place)
    assert_whole(place, range(80))

    other = place.with_name("other")
    run(write(tmp_path / "o" / "a.parquet", range(500, 520)), other)
    shutil.rmtree(f"{place}.lance")
    shutil.move(f"{other}.lance", f"{place}.lance")
    run(corpus, place)
    assert sorted(rows(place)["row_id"].to_pylist()) == [f"{i:04d}" for i in (*range(80), *range(500, 520))]


def _cut_short(ledger: Path) -> None:
    for file in (ledger / "data").iterdir():
        file.write_bytes(file.read_bytes()[:10])


def _without_data(ledger: Path) -> None:
    shutil.rmtree(ledger / "data")


def _garbage(ledger: Path) -> None:
    for file in (ledger / "_versions").iterdir():
        file.write_bytes(b"garbage")


def _gone(ledger: Path) -> None:
    shutil.rmtree(ledger)


@pytest.mark.parametrize(
    "damage", [pytest.param(f, marks=_SLOW) for f in (_cut_short, _without_data, _gone)] + [_garbage]
)
def test_a_damaged_ledger_is_made_anew(
    place: Path, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    corpus = tmp_path / "c"
    write(corpus / "a.parquet", range(30), bad=lambda i: i == 7)
    run(corpus, place)
    damage(Path(f"{place}_ledger.lance"))
    write(corpus / "b.parquet", range(30, 50))
    with caplog.at_level(logging.WARNING):
        run(corpus, place)
    assert damage is _gone or "ledger cannot be read" in caplog.text
    assert_whole(place, range(50), rejects=1)
    assert run(corpus, place).skipped == 50


def write_tar(path: Path, ids: range) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in ids:
            member = tarfile.TarInfo(f"{i:04d}.txt")
            data = f"caption {i}".encode()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_a_tar_whose_end_was_forgotten_is_read_once_more_and_is_complete(place: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "c"
    write_tar(corpus / "0.tar", range(30))
    run(corpus, place, columns={})
    lance.dataset(f"{place}.lance").cleanup_old_versions(older_than=timedelta(0))
    _gone(Path(f"{place}_ledger.lance"))
    first = run(corpus, place, columns={})
    assert (first.rows_in, rows(place).num_rows) == (0, 30)
    second = run(corpus, place, columns={})
    assert (second.shards, second.shards_skipped, second.skipped) == (1, 1, 30)


def test_rows_that_another_tool_added_are_nobodys_claim(place: Path, tmp_path: Path) -> None:
    corpus = write(tmp_path / "a.parquet", range(30))
    run(corpus, place)
    table = database(place).open_table("t")
    table.add(pa.table({"row_id": ["mine"], "caption": ["my own row"]}))
    table.optimize(cleanup_older_than=timedelta(0))
    _gone(Path(f"{place}_ledger.lance"))
    run(corpus, place)
    found = rows(place)["row_id"].to_pylist()
    assert sorted(found) == sorted([*(f"{i:04d}" for i in range(30)), "mine"])


@_SLOW
def test_maintain_says_that_the_ledger_did_not_match(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = write(tmp_path / "a.parquet", range(30))
    run(corpus, place)
    database(place).open_table("t").restore(1)
    with caplog.at_level(logging.WARNING):
        maintain(MaintainConfig(table=str(place)))
    assert "rebuilt from its rows" in caplog.text
    run(corpus, place)
    assert_whole(place, range(30))


@_SLOW
def test_a_run_after_upkeep_trusts_the_ledger(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Compaction and cleanup are no mismatch: rows that a user deleted stay away."""
    corpus = write(tmp_path / "a.parquet", range(60))
    run(corpus, place)
    table = database(place).open_table("t")
    table.create_scalar_index("row_id")
    table.delete("row_id = '0003'")
    maintain(MaintainConfig(table=str(place), keep_versions=1))
    with caplog.at_level(logging.WARNING):
        assert run(corpus, place).rows_in == 0
    assert "rebuilt" not in caplog.text
    assert rows(place).num_rows == 59


# Nothing beside the table is destroyed before the commit that justifies it.


@pytest.mark.parametrize(
    "point",
    [
        "before_reject_sweep",
        *(pytest.param(p, marks=_SLOW) for p in ("before_sweep", "before_commit:2", "after_commit:1")),
    ],
)
def test_a_sync_killed_anywhere_loses_no_reject(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    corpus = tmp_path / "c"
    write(corpus / "a.parquet", range(40), bad=lambda i: i % 8 == 0)
    write(corpus / "b.parquet", range(40, 60))
    run(corpus, place)
    write(corpus / "a.parquet", range(40), bad=lambda i: i % 8 == 0, note="new ")
    before = rejected(place)
    killed(monkeypatch, point, lambda: run_sync(corpus, place))
    assert before == 5
    if point == "before_sweep":  # what was not committed anew still counts
        assert len(set(rows(place)["row_id"].to_pylist())) + rejected(place) >= 60
    run_sync(corpus, place)
    assert_whole(place, range(60), rejects=5)


def test_a_driver_that_finds_its_work_done_says_so(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is suspended before a commit, its lease runs out, and the second does all the work."""
    corpus = write(tmp_path / "a.parquet", range(60), bad=lambda i: i % 10 == 0)
    seen: list[EmbedReport] = []

    def suspended(point: str) -> None:
        if point == "before_commit" and not seen:
            seen.append(None)  # type: ignore[arg-type]
            dataset = lance.dataset(f"{place}.lance")
            holder = json.loads(dataset.config()["isthmus.lease"])
            dataset.update_config({"isthmus.lease": json.dumps({**holder, "expires": 1.0})})
            seen[0] = run(corpus, place)

    monkeypatch.setattr(landing, "fault", suspended)
    with pytest.raises(LeaseHeldError, match="lost its lease"):
        run(corpus, place)
    assert_whole(place, range(60), rejects=6)
    assert (seen[0].rows_in, seen[0].written) == (60, 54)
    again = run(corpus, place)
    assert (again.rows_in, again.skipped) == (0, 60)


# A table that somebody else made is nobody's sibling.


@pytest.mark.parametrize("role", ["ledger", "rejects"])
def test_a_users_own_table_of_a_siblings_name_is_left_alone(place: Path, tmp_path: Path, role: str) -> None:
    corpus = write(tmp_path / "a.parquet", range(20), bad=lambda i: i == 3)
    mine = pa.table({"note": ["mine", "too"]})
    database(place).create_table(f"t_{role}", mine)
    with pytest.raises(ValueError, match=rf"t_{role}: was not made by isthmus.*Rename 't_{role}'"):
        run(corpus, place)
    assert not Path(f"{place}.lance").exists()
    run(corpus, place.with_name("u"))
    shutil.rmtree(f"{place.with_name('u')}_{role}.lance")
    database(place).create_table(f"u_{role}", mine)
    with pytest.raises(ValueError, match=f"u_{role}: was not made by isthmus"):
        maintain(MaintainConfig(table=str(place.with_name("u"))))
    for name in ("t", "u"):
        assert database(place).open_table(f"{name}_{role}").to_arrow().equals(mine)


# The commit covers the schema and the files.


def at_second_commit(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Do something to the table right before the second commit of the next run."""
    count = [0]

    def hook(point: str) -> None:
        if point == "before_commit":
            count[0] += 1
            if count[0] == 2:
                act()

    monkeypatch.setattr(landing, "fault", hook)


def test_a_column_that_cannot_be_null_is_refused_in_mid_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write(tmp_path / "a.parquet", range(60))
    at_second_commit(monkeypatch, lambda: database(place).open_table("t").add_columns({"one": "1"}))
    with pytest.raises(SchemaChangedError, match=r"column 'one' was added while this job ran.*nullable"):
        run(corpus, place)
    assert 0 < rows(place).num_rows < 60  # the table can be read
    database(place).open_table("t").alter_columns({"path": "one", "nullable": True})
    run(corpus, place)
    assert_whole(place, range(60))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda table: table.add_columns(pa.field("note", pa.string())), marks=_SLOW),
        lambda table: table.optimize(cleanup_older_than=timedelta(0)),
        pytest.param(lambda table: table.optimize(), marks=_SLOW),
        pytest.param(lambda table: table.update(where="row_id = '0001'", values={"caption": "mine"}), marks=_SLOW),
        pytest.param(lambda table: table.create_scalar_index("row_id"), marks=_SLOW),
    ],
    ids=["a column", "a cleanup", "a compaction", "an update", "an index"],
)
def test_a_run_goes_on_beside_other_tools(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]
) -> None:
    corpus = write(tmp_path / "a.parquet", range(60), bad=lambda i: i % 10 == 0)
    at_second_commit(monkeypatch, lambda: change(database(place).open_table("t")))
    run(corpus, place)
    assert_whole(place, range(60), rejects=6)


def test_files_that_a_cleanup_removed_are_missed_before_the_commit(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write(tmp_path / "a.parquet", range(60))

    def clean_up() -> None:
        lance.dataset(f"{place}.lance").cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)

    at_second_commit(monkeypatch, clean_up)
    with pytest.raises(StaleGroupError, match=r"cleanup removed it while this job ran\. Run the same command again"):
        run(corpus, place)
    monkeypatch.undo()
    run(corpus, place)
    assert_whole(place, range(60))


# Deletes use the key of the bookkeeping.


def test_a_retry_of_a_key_that_repeats_touches_no_other_record(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"id": ["same"] * 6 + ["x", "y"], "caption": ["a", "b", None, "d", "e", None, "x", "y"]})
    pq.write_table(table, path)
    run(path, place)
    before = sorted(rows(place)["caption"].to_pylist())
    assert (before, rejected(place)) == (["a", "b", "d", "e", "x", "y"], 2)
    report = retry(RetryConfig(table=str(place), reason=["missing_caption"]))
    assert sorted(rows(place)["caption"].to_pylist()) == before
    assert rejected(place) == 2
    assert report is not None


def test_an_update_while_rows_are_replaced_leaves_no_old_row(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write(tmp_path / "a.parquet", range(60))
    run(corpus, place)
    write(tmp_path / "a.parquet", range(60), note="new ")
    table = database(place).open_table("t")
    at_second_commit(monkeypatch, lambda: table.update(where="row_id > '0020'", values={"caption": "mine"}))
    run(corpus, place)
    assert_whole(place, range(60))
    assert all(caption.startswith("new ") for caption in rows(place)["caption"].to_pylist())
