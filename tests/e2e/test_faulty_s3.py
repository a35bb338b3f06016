"""Stores as they are: with every kind of fault now and then, a job ends and all rows are there, once.

The store is a real S3 server; a proxy in front of it makes the faults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from corpora import Pair, pairs, write_folder, write_parquet
from faulty_store import TRANSIENT, faulty
from stores import BUCKET, OTHER_BUCKET, OTHER_SECRET, SECRET, client, options, other_options, seaweedfs, upload

from jobs.cli import _one_line
from jobs.embed import EmbedConfig, run

pytestmark = pytest.mark.usefixtures("ray_session")
TIMEOUTS = {"request_timeout": "1.5s", "connect_timeout": "1s"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
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


def embed(corpus: str, table: str, corpus_endpoint: str, table_endpoint: str, **more: Any):  # type: ignore[no-untyped-def]
    """Corpus and table in different stores, each with credentials that the other one does not take."""
    config: dict[str, Any] = {
        "columns": {"key": "id"},
        "commit_rows": 60,
        "fragment_rows": 30,
        "corpus_storage_options": options(corpus_endpoint) | TIMEOUTS,
        "storage_options": other_options(table_endpoint) | TIMEOUTS,
    }
    return run(EmbedConfig(corpus=corpus, table=table, encoder="fake", **(config | more)))


def rows(endpoint: str, name: str) -> pa.Table:
    dataset = lance.dataset(f"s3://{OTHER_BUCKET}/db/{name}.lance", storage_options=other_options(endpoint))
    return dataset.to_table(columns=["row_id", "caption", "image_vector", "text_vector"]).sort_by("row_id")


def check_same(found: pa.Table, wanted: pa.Table) -> None:
    """The same rows, each once."""
    assert found["row_id"].to_pylist() == wanted["row_id"].to_pylist()
    assert found["caption"].equals(wanted["caption"])
    for column in ("image_vector", "text_vector"):
        np.testing.assert_allclose(np.array(found[column].to_pylist()), np.array(wanted[column].to_pylist()), atol=1e-6)


def undisturbed(tmp_path: Path, items: list[Pair]) -> pa.Table:
    corpus = write_parquet(tmp_path / "plain" / "c.parquet", items)
    run(EmbedConfig(corpus=str(corpus), table=str(tmp_path / "db/t"), encoder="fake", columns={"key": "id"}))
    columns = ["row_id", "caption", "image_vector", "text_vector"]
    return lance.dataset(str(tmp_path / "db/t.lance")).to_table(columns=columns).sort_by("row_id")


def check_survives(store: str, tmp_path: Path, corpus: Path, n: int, rates: dict[str, float], name: str, **more: Any):  # type: ignore[no-untyped-def]
    """Embeds a corpus through stores that fail; returns how many faults of each kind there were."""
    uri = upload(store, corpus, name)
    with faulty(store, rates, seed=1) as reads, faulty(store, rates, seed=2) as writes:
        report = embed(uri, f"s3://{OTHER_BUCKET}/db/{name}", reads.endpoint, writes.endpoint, **more)
        again = embed(uri, f"s3://{OTHER_BUCKET}/db/{name}", reads.endpoint, writes.endpoint, **more)
    assert (report.rows_in, report.written, report.rejected) == (n, n, {})
    assert (again.rows_in, again.skipped) == (0, n)
    return reads.faults, writes.faults


ALL = dict.fromkeys(TRANSIENT, 0.05)


def test_faults_of_every_kind_cost_no_row(store: str, tmp_path: Path) -> None:
    """Pictures by URI: a request each. A third of all requests fails in some way."""
    items = pairs(200)
    faults = check_survives(store, tmp_path, write_uris(tmp_path / "uris", items), 200, ALL, "uris")
    seen = faults[0] + faults[1]
    assert set(seen) == set(TRANSIENT), "the test proves nothing of a fault that did not happen"
    check_same(rows(store, "uris"), undisturbed(tmp_path, items))


def test_shards_that_break_off_give_each_record_once(store: str, tmp_path: Path) -> None:
    items = pairs(300)
    corpus = write_parquet(tmp_path / "c" / "c.parquet", items, row_group_rows=20)
    faults = check_survives(store, tmp_path, corpus.parent, 300, ALL, "parquet")
    assert sum((faults[0] + faults[1]).values()) > 5
    check_same(rows(store, "parquet"), undisturbed(tmp_path, items))


def searched_for_secrets(text: str) -> None:
    assert SECRET not in text
    assert OTHER_SECRET not in text


def stopped(caught: pytest.ExceptionInfo[BaseException]) -> str:
    """The line that the command line shows; no secret is in it, nor in all that is behind it."""
    link: BaseException | None = caught.value
    while link is not None:
        searched_for_secrets(f"{link!r} {link}")
        link = link.__cause__ or link.__context__
    line = _one_line(caught.value)
    assert "\n" not in line
    return line


def test_credentials_that_expire_stop_the_job_and_the_next_run_ends_it(store: str, tmp_path: Path) -> None:
    """An expired token must not become a reject for each picture that is left."""
    items = pairs(200)
    uri = upload(store, write_uris(tmp_path / "uris", items), "expiring")
    table = f"s3://{OTHER_BUCKET}/db/expiring"
    with faulty(store) as reads:
        reads.begin("expired", after=150, path="/expiring/images/")
        with pytest.raises(PermissionError, match=r"images/.*expired") as caught:
            embed(uri, table, reads.endpoint, store)
        assert "renew them" in stopped(caught)
    dataset = lance.dataset(f"{table}.lance", storage_options=other_options(store))
    assert dataset.count_rows() < 200
    report = embed(uri, table, store, store)
    assert (report.written + report.skipped, report.rejected) == (200, {})
    check_same(rows(store, "expiring"), undisturbed(tmp_path, items))


def test_a_table_that_becomes_read_only_is_as_of_its_last_commit(store: str, tmp_path: Path) -> None:
    items = pairs(200)
    uri = upload(store, write_parquet(tmp_path / "c.parquet", items, row_group_rows=20), "readonly")
    table = f"s3://{OTHER_BUCKET}/db/readonly"
    with faulty(store) as writes:
        writes.begin("read_only", after=60, path="/db/readonly.lance/")
        with pytest.raises(PermissionError, match="refuses these credentials; check") as caught:
            embed(uri, table, store, writes.endpoint, commit_rows=20, fragment_rows=20)
        assert f"{table}.lance" in stopped(caught)
    before = lance.dataset(f"{table}.lance", storage_options=other_options(store)).count_rows()
    report = embed(uri, table, store, store)
    assert (report.skipped, report.written) == (before, 200 - before)
    check_same(rows(store, "readonly"), undisturbed(tmp_path, items))


def test_no_secret_is_written_anywhere(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every object of the table's store, what was logged and printed, Ray's own logs, the report."""
    import ray

    caplog.set_level("DEBUG")
    items = pairs(30)
    uri = upload(store, write_uris(tmp_path / "uris", items), "secrets")
    (tmp_path / "uris/images/00003.jpg").unlink()
    client(store).delete_object(Bucket=BUCKET, Key="secrets/images/00003.jpg")
    with faulty(store, {"slow_down": 0.1}, seed=3) as proxy:
        report = embed(uri, f"s3://{OTHER_BUCKET}/db/secrets", proxy.endpoint, proxy.endpoint)
    assert report.rejected == {"image_not_found": 1}
    searched_for_secrets(json.dumps(report.to_dict()))
    printed = capfd.readouterr()
    searched_for_secrets(printed.out + printed.err + caplog.text)
    files = client(store, other=True)
    keys = [
        entry["Key"] for entry in files.list_objects_v2(Bucket=OTHER_BUCKET, Prefix="db/secrets").get("Contents", [])
    ]
    assert {key.split("/")[1] for key in keys} == {
        "secrets.lance", "secrets_ledger.lance", "secrets_rejects.lance"
    }  # fmt: skip
    for key in keys:
        searched_for_secrets(files.get_object(Bucket=OTHER_BUCKET, Key=key)["Body"].read().decode("latin-1"))
    logs = [path for path in Path(ray.worker._global_node.get_session_dir_path()).glob("logs/**/*") if path.is_file()]
    assert logs
    for path in logs:
        searched_for_secrets(path.read_bytes().decode("latin-1"))
