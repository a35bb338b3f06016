"""Stores fail in every way now and then; a job still ends with every row in the table, exactly once.

The store is a real S3 server; a proxy in front of it injects the faults.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from corpora import Pair, pairs, write_folder, write_parquet, write_webdataset
from engines import on_engine
from faulty_store import TRANSIENT, faulty
from stores import BUCKET, OTHER_BUCKET, OTHER_SECRET, SECRET, client, options, other_options, seaweedfs, upload

import jobs.sync
from jobs.cli import _one_line
from jobs.embed import EmbedConfig, run
from jobs.sync import SyncConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("engine")]
log = logging.getLogger(__name__)
ITEMS = 120
COLUMNS = ["row_id", "caption", "image_vector", "text_vector"]
TIMEOUTS = {"request_timeout": "1s", "connect_timeout": "1s"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[str]:
    with seaweedfs(tmp_path_factory.mktemp("weed")) as endpoint:
        yield endpoint


def write_uris(folder: Path, items: list[Pair]) -> Path:
    """Pictures, and a list that names them."""
    write_folder(folder / "images", items)
    for text in (folder / "images").glob("*.txt"):
        text.unlink()
    lines = [json.dumps({"id": p.key, "image": f"{p.key}.jpg", "caption": p.caption}) for p in items]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def embed(  # type: ignore[no-untyped-def]
    corpus: str, table: str, corpus_endpoint: str, table_endpoint: str, sync: bool = False, **more: Any
):
    """Corpus and table in different stores, each with credentials that the other one rejects."""
    config: dict[str, Any] = {
        "columns": {"key": "id"},
        "commit_rows": 60,
        "fragment_rows": 30,
        "corpus_storage_options": options(corpus_endpoint) | TIMEOUTS,
        "storage_options": other_options(table_endpoint) | TIMEOUTS,
    }
    job = {"corpus": corpus, "table": table, "encoder": "fake"} | on_engine() | config | more
    return jobs.sync.run(SyncConfig(**job)) if sync else run(EmbedConfig(**job))


def copy_table(endpoint: str, name: str, to: str) -> None:
    """Copy a table and its siblings within their store."""
    files = client(endpoint, other=True)
    for entry in files.list_objects_v2(Bucket=OTHER_BUCKET, Prefix=f"db/{name}")["Contents"]:
        key = entry["Key"]
        target = key.replace(f"db/{name}", f"db/{to}", 1)
        files.copy_object(Bucket=OTHER_BUCKET, Key=target, CopySource={"Bucket": OTHER_BUCKET, "Key": key})


def rows(endpoint: str, name: str) -> pa.Table:
    dataset = lance.dataset(f"s3://{OTHER_BUCKET}/db/{name}.lance", storage_options=other_options(endpoint))
    return dataset.to_table(columns=COLUMNS).sort_by("row_id")


def check_same(found: pa.Table, wanted: pa.Table) -> None:
    """Assert that the table has the same rows, each once."""
    assert found["row_id"].to_pylist() == wanted["row_id"].to_pylist()
    assert found["caption"].equals(wanted["caption"])
    for column in ("image_vector", "text_vector"):
        np.testing.assert_allclose(np.array(found[column].to_pylist()), np.array(wanted[column].to_pylist()), atol=1e-6)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The rows of `pairs(ITEMS)` embedded from disk to disk, undisturbed."""
    return undisturbed(tmp_path_factory.mktemp("plain"), ITEMS)


def undisturbed(folder: Path, n: int) -> pa.Table:
    corpus = write_parquet(folder / "c" / "c.parquet", pairs(n))
    run(EmbedConfig(corpus=str(corpus), table=str(folder / "db/t"), encoder="fake", actors=1, columns={"key": "id"}))
    return lance.dataset(str(folder / "db/t.lance")).to_table(columns=COLUMNS).sort_by("row_id")


def survive(store: str, uri: str, name: str, rates: dict[str, float], **more: Any) -> tuple[Any, Counter[str]]:
    """Embed a corpus through stores that fail; return the report and the number of faults of each kind."""
    with faulty(store, rates, seed=1) as reads, faulty(store, rates, seed=2) as writes:
        report = embed(uri, f"s3://{OTHER_BUCKET}/db/{name}", reads.endpoint, writes.endpoint, **more)
    log.info("%s: %s s, %s and %s", name, report.seconds, reads, writes)
    faults = reads.faults + writes.faults
    assert faults.total(), "nothing went wrong, so nothing was proven"
    return report, faults


def check_settled(store: str, uri: str, name: str, n: int, **more: Any) -> None:
    """After all those faults, ledger and table must say that nothing is left to do."""
    again = embed(uri, f"s3://{OTHER_BUCKET}/db/{name}", store, store, **more)
    assert (again.rows_in, again.skipped) == (0, n)


ALL = dict.fromkeys(TRANSIENT, 0.05)


def test_faults_of_every_kind_cost_no_row_and_show_no_secret(
    store: str,
    plain: pa.Table,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Pictures by URI, one request each; a third of all requests fails in some way. One picture is missing."""
    caplog.set_level("DEBUG")
    uri = upload(store, write_uris(tmp_path / "uris", pairs(ITEMS)), "uris")
    client(store).delete_object(Bucket=BUCKET, Key="uris/images/00003.jpg")
    report, faults = survive(store, uri, "uris", ALL)
    assert (report.written, report.rejected) == (ITEMS - 1, {"image_not_found": 1})
    assert set(faults) == set(TRANSIENT), "the test proves nothing of a fault that did not happen"
    check_same(rows(store, "uris"), plain.filter(pc.field("row_id") != "00003"))
    check_settled(store, uri, "uris", ITEMS)

    printed = capfd.readouterr()
    searched_for_secrets(json.dumps(report.to_dict()) + printed.out + printed.err + caplog.text)
    search_store_and_logs(store, "uris")


def search_store_and_logs(store: str, name: str) -> None:
    """The content of every object in and beside the table (its transactions included), and of Ray's own logs."""
    import ray

    files = client(store, other=True)
    listed = files.list_objects_v2(Bucket=OTHER_BUCKET, Prefix=f"db/{name}")["Contents"]
    keys = [entry["Key"] for entry in listed]
    folders = {key.split("/")[1] for key in keys}
    assert folders == {f"{name}.lance", f"{name}_ledger.lance", f"{name}_rejects.lance"}
    for key in keys:
        searched_for_secrets(files.get_object(Bucket=OTHER_BUCKET, Key=key)["Body"].read().decode("latin-1"))
    session = Path(ray.worker._global_node.get_session_dir_path())
    logs = [path for path in session.glob("logs/**/*") if path.is_file()]
    assert logs
    for path in logs:
        searched_for_secrets(path.read_bytes().decode("latin-1"))


@pytest.mark.heavy
def test_shards_that_break_off_give_each_record_once(store: str, plain: pa.Table, tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "c" / "c.parquet", pairs(ITEMS), row_group_rows=30)
    uri = upload(store, corpus.parent, "parquet")
    report, _ = survive(store, uri, "parquet", ALL, commit_rows=1_000, fragment_rows=1_000)
    assert (report.written, report.rejected) == (ITEMS, {})
    check_same(rows(store, "parquet"), plain)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_fault_by_itself_costs_no_row(store: str, tmp_path: Path, kind: str) -> None:
    n = 400
    wanted = undisturbed(tmp_path, n)
    uri = upload(store, write_uris(tmp_path / "uris", pairs(n)), f"one-{kind}")
    report, faults = survive(store, uri, f"one-{kind}", {kind: 0.05}, commit_rows=50)
    assert (report.written, report.rejected, set(faults)) == (n, {}, {kind})
    check_same(rows(store, f"one-{kind}"), wanted)
    check_settled(store, uri, f"one-{kind}", n)


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", ["uris", "parquet", "tars", "folder"])
def test_all_faults_together_cost_no_row_of_a_larger_corpus(store: str, tmp_path: Path, form: str) -> None:
    n, items = 1_200, pairs(1_200)
    wanted = undisturbed(tmp_path, n)
    keys = {"tars": "__key__", "folder": "stem"}
    make: dict[str, Any] = {
        "uris": write_uris,
        "parquet": lambda to, items: write_parquet(to / "c.parquet", items, row_group_rows=40).parent,
        "tars": lambda to, items: write_webdataset(to, items, per_tar=100),
        "folder": write_folder,
    }
    uri = upload(store, make[form](tmp_path / form, items), f"large-{form}")
    columns = {"columns": {"key": keys.get(form, "id")}}
    report, faults = survive(store, uri, f"large-{form}", ALL, commit_rows=200, fragment_rows=100, **columns)
    assert (report.written, report.rejected, set(faults)) == (n, {}, set(TRANSIENT))
    check_same(rows(store, f"large-{form}"), wanted)
    check_settled(store, uri, f"large-{form}", n, **columns)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_any_single_request_of_a_run_that_changes_a_table_may_fail(store: str, tmp_path: Path) -> None:
    """Rows are kept, replaced, reused and removed, and rejects settle, while each request in turn fails once."""
    items = pairs(ITEMS)
    items[7] = replace(items[7], image=b"not a picture")
    first = write_parquet(tmp_path / "c" / "a.parquet", items[:60], row_group_rows=20).parent
    write_parquet(first / "b.parquet", items[60:], row_group_rows=20)
    uri = upload(store, first, "turns")
    embed(uri, f"s3://{OTHER_BUCKET}/db/base", store, store)
    changed = [replace(item, caption=f"{item.caption}, changed") for item in items[60:100]]
    write_parquet(first / "b.parquet", changed, row_group_rows=20)
    upload(store, first, "turns")

    def run_on_a_copy(name: str, endpoint: str) -> Any:
        copy_table(store, "base", name)
        return embed(uri, f"s3://{OTHER_BUCKET}/db/{name}", store, endpoint, sync=True, commit_rows=40)

    with faulty(store) as counted:
        calm = run_on_a_copy("calm", counted.endpoint)
        requests = sum(counted.requests.values())
    assert (calm.written, calm.replaced, calm.removed) == (40, 40, 20)
    wanted = rows(store, "calm")
    failed: Counter[str] = Counter()
    for n in range(0, requests, 4):
        with faulty(store) as writes:
            writes.begin(TRANSIENT[(n // 4) % len(TRANSIENT)], after=n, times=1)
            report = run_on_a_copy(f"turn{n}", writes.endpoint)
        failed.update(writes.faults)
        assert (report.written, report.rejected) == (calm.written, calm.rejected), (n, writes)
        check_same(rows(store, f"turn{n}"), wanted)
    log.info("one of %s requests failed at a time: %s", requests, dict(failed))
    assert set(failed) == set(TRANSIENT)


def searched_for_secrets(text: str) -> None:
    assert SECRET not in text
    assert OTHER_SECRET not in text


def stopped(caught: pytest.ExceptionInfo[BaseException]) -> str:
    """The line that the command prints. Neither it nor the exceptions behind it contain a secret."""
    link: BaseException | None = caught.value
    while link is not None:
        searched_for_secrets(f"{link!r} {link}")
        link = link.__cause__ or link.__context__
    line = _one_line(caught.value)
    assert "\n" not in line
    return line


def test_credentials_that_expire_stop_the_job_and_the_next_run_ends_it(
    store: str, plain: pa.Table, tmp_path: Path
) -> None:
    """An expired token must not turn every remaining picture into a reject."""
    items = pairs(ITEMS)
    uri = upload(store, write_uris(tmp_path / "uris", items), "expiring")
    table = f"s3://{OTHER_BUCKET}/db/expiring"
    with faulty(store) as reads:
        reads.begin("expired", after=60, path="/expiring/images/")
        with pytest.raises(PermissionError, match=r"images/.*expired") as caught:
            embed(uri, table, reads.endpoint, store)
        assert "renew them" in stopped(caught)
    dataset = lance.dataset(f"{table}.lance", storage_options=other_options(store))
    assert dataset.count_rows() < ITEMS
    report = embed(uri, table, store, store)
    assert (report.written + report.skipped, report.rejected) == (ITEMS, {})
    check_same(rows(store, "expiring"), plain)


@pytest.mark.heavy
def test_a_table_that_becomes_read_only_is_as_of_its_last_commit(store: str, plain: pa.Table, tmp_path: Path) -> None:
    items = pairs(ITEMS)
    uri = upload(store, write_parquet(tmp_path / "c.parquet", items, row_group_rows=20), "readonly")
    table = f"s3://{OTHER_BUCKET}/db/readonly"
    with faulty(store) as writes:
        writes.begin("read_only", after=10, path="/db/readonly.lance/", method="PUT")
        with pytest.raises(PermissionError, match="refuses these credentials; check") as caught:
            embed(uri, table, store, writes.endpoint, commit_rows=20, fragment_rows=20)
        assert table in stopped(caught)
    before = lance.dataset(f"{table}.lance", storage_options=other_options(store)).count_rows()
    report = embed(uri, table, store, store)
    assert (report.skipped, report.written) == (before, ITEMS - before)
    check_same(rows(store, "readonly"), plain)
