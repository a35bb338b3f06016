"""A corpus that is moved, linked, copied, renamed in part or emptied: no row is lost, doubled or left behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import Pair, pairs, picture, write_folder, write_parquet
from stores import BUCKET, client, moto, options, upload

from jobs.embed import EmbedConfig
from jobs.embed import run as embed
from jobs.rejects import RejectsConfig, RetryConfig, retry
from jobs.rejects import run as rejects
from jobs.sync import SyncConfig
from jobs.sync import run as sync
from pipelines.ingest.embed_report import EmbedReport
from pipelines.search.serving.app import ServeSettings, create_app
from pipelines.store.storage import TableRef
from pipelines.tables.corpora import read_corpora
from pipelines.tables.opening import open_dataset

ITEMS = pairs(8)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "db" / "t"


def embed_into(table: Path, corpus: object, **more: Any) -> EmbedReport:
    return embed(EmbedConfig(corpus=str(corpus), table=str(table), encoder="fake", engine="process", **more))


def sync_into(table: Path, corpus: object, **more: Any) -> EmbedReport:
    given: dict[str, Any] = {"encoder": "fake", "engine": "process", "max_delete_rate": 1, **more}
    return sync(SyncConfig(corpus=str(corpus), table=str(table), **given))


def rows(table: Path, *columns: str) -> list[Any]:
    found = lance.dataset(f"{table}.lance").to_table(columns=list(columns or ("row_id",))).to_pylist()
    return sorted(tuple(row.values()) if columns[1:] else next(iter(row.values())) for row in found)


def names(table: Path) -> list[str]:
    """The files that the rows' pictures were in."""
    return [Path(uri).name for uri in rows(table, "image_uri")]


def test_a_moved_corpus_is_the_same_corpus_and_its_pictures_are_found(
    table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = write_folder(tmp_path / "old", ITEMS)
    embed_into(table, corpus)
    before = rows(table)
    moved = corpus.rename(tmp_path / "new")
    report = embed_into(table, moved)
    assert (report.rows_in, report.skipped, report.replaced, report.removed) == (0, 8, 0, 0)
    assert rows(table) == before
    said = f"corpus {corpus} of table {table} is in {moved} now; it was in {corpus}"
    embed_into(table, moved)
    assert [record.getMessage() for record in caplog.records].count(said) == 1

    ref = TableRef.parse(str(table))
    assert read_corpora(open_dataset(ref)).locate(f"{corpus}/00000.jpg") == f"{moved}/00000.jpg"
    from fastapi.testclient import TestClient

    page = TestClient(create_app({"t": ref}, ServeSettings()))
    shown = page.get("/api/tables/t/picture", params={"row": before[0]}, headers={"host": "localhost"})
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/jpeg"), shown.text

    (moved / "00001.jpg").unlink()
    (moved / "00001.txt").unlink()
    assert (sync_into(table, moved).removed, len(rows(table))) == (1, 7)


def test_a_table_from_before_corpora_were_registered_knows_them_by_its_jobs(table: Path, tmp_path: Path) -> None:
    corpus = write_folder(tmp_path / "old", ITEMS)
    one = write_parquet(tmp_path / "first" / "one.parquet", ITEMS[:2])
    embed_into(table, corpus)
    embed_into(table.with_name("u"), one)
    for old in (table, table.with_name("u")):
        dataset = lance.dataset(f"{old}.lance")
        dataset.delete_config_keys([key for key in dataset.config() if key.startswith("isthmus.corpus.")])
    moved = corpus.rename(tmp_path / "new")
    assert (embed_into(table, moved).rows_in, len(rows(table))) == (0, 8)
    one.parent.rename(tmp_path / "second")
    assert embed_into(table.with_name("u"), tmp_path / "second" / "one.parquet").rows_in == 0


def test_a_file_that_moves_from_one_corpus_to_another_is_not_there_twice(table: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "1.parquet", ITEMS[:2])
    write_parquet(tmp_path / "a" / "2.parquet", ITEMS[2:4])
    write_parquet(tmp_path / "b" / "3.parquet", ITEMS[4:])
    embed_into(table, tmp_path / "a")
    embed_into(table, tmp_path / "b")
    (tmp_path / "a" / "2.parquet").rename(tmp_path / "b" / "2.parquet")
    embed_into(table, tmp_path / "b")
    assert rows(table, "id") == [item.key for item in ITEMS]
    assert embed_into(table, tmp_path / "a").rows_in == 0


def test_a_name_that_is_not_utf_8_costs_no_other_file_and_is_seen_to_go(table: Path, tmp_path: Path) -> None:
    corpus = write_folder(tmp_path / "c", ITEMS)
    strange = os.fsencode(corpus) + b"/caf\xe9.jpg"
    os.rename(corpus / "00001.jpg", strange)  # noqa: PTH104  (bytes are no Path)
    report = embed_into(table, corpus, embed="any")
    assert (report.rows_in, report.written + sum(report.rejected.values())) == (9, 9)
    assert embed_into(table, corpus, embed="any").rows_in == 0
    os.unlink(strange)  # noqa: PTH108
    gone = sync_into(table, corpus, embed="any")
    assert (gone.files_gone, gone.rows_in, len(rows(table))) == (1, 0, 8)


def test_another_path_to_a_corpus_is_the_same_corpus(table: Path, tmp_path: Path) -> None:
    corpus = write_folder(tmp_path / "c", ITEMS)
    (tmp_path / "link").symlink_to(corpus)
    assert embed_into(table, tmp_path / "link").written == 8
    spellings = (corpus, f"{corpus}/*.jpg", f"{tmp_path}/x/../c", f"{tmp_path}/link/**", f"{tmp_path}/c*/*.[jt]*")
    for other in spellings[:1] + spellings[2:4]:
        report = embed_into(table, other)
        assert (report.rows_in, report.skipped) == (0, 8), other
    assert len(rows(table)) == 8


def test_a_copy_is_refused_and_a_name_settles_it(table: Path, tmp_path: Path) -> None:
    first = write_folder(tmp_path / "2024-01-01", ITEMS)
    embed_into(table, first)
    second = Path(shutil.copytree(first, tmp_path / "2024-01-02"))
    version = lance.dataset(f"{table}.lance").version
    with pytest.raises(ValueError, match=f"8 of its files .* corpus '{first}'.*give --corpus-name {first} if"):
        embed_into(table, second)
    assert lance.dataset(f"{table}.lance").version == version
    (second / "00007.jpg").unlink()
    (second / "00007.txt").unlink()
    report = sync_into(table, second, corpus_name=str(first))
    assert (report.rows_in, report.removed, len(rows(table))) == (0, 1, 7)

    assert embed_into(table, first, corpus_name="other").written == 8
    found = rows(table)
    assert len(found) == len(set(found)) == 15, "ids of rows are of their corpus"


def test_folders_within_each_other_share_their_rows(table: Path, tmp_path: Path) -> None:
    inner = write_folder(tmp_path / "c" / "a", ITEMS[:4])
    write_folder(tmp_path / "c" / "b", ITEMS[4:])
    assert embed_into(table, inner).written == 4
    assert embed_into(table, tmp_path / "c").written == 4
    (inner / "00000.txt").write_text("new words")
    report = embed_into(table, tmp_path / "c")
    assert (report.rows_in, report.replaced + report.removed, len(rows(table))) == (1, 1, 8)
    (inner / "00001.jpg").unlink()
    (inner / "00001.txt").unlink()
    assert sync_into(table, inner).removed == 1
    assert sync_into(table, tmp_path / "c").rows_in == 0
    assert len(rows(table)) == 7


@pytest.mark.parametrize("run", [embed_into, sync_into])
def test_a_renamed_file_is_not_there_twice(run: Callable[..., EmbedReport], table: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "c" / "a.parquet", ITEMS[:5])
    write_parquet(tmp_path / "c" / "b.parquet", ITEMS[5:])
    run(table, tmp_path / "c")
    (tmp_path / "c" / "a.parquet").rename(tmp_path / "c" / "z.parquet")
    report = run(table, tmp_path / "c")
    assert (report.rows_in, report.files_changed, report.files_gone) == (5, 1, 0)
    assert rows(table, "id") == [item.key for item in ITEMS]
    pictures = write_folder(tmp_path / "p", ITEMS)
    run(table.with_name("p"), pictures)
    for suffix in (".jpg", ".txt"):
        (pictures / f"00003{suffix}").rename(pictures / f"moved{suffix}")
    run(table.with_name("p"), pictures)
    assert len(rows(table.with_name("p"))) == 8
    assert run(table.with_name("p"), pictures).commits == 0


@pytest.mark.parametrize("embedded", ["any", "auto"])
@pytest.mark.parametrize("run", [embed_into, sync_into])
def test_a_picture_that_comes_a_night_after_its_caption_takes_its_place(
    run: Callable[..., EmbedReport], embedded: str, table: Path, tmp_path: Path
) -> None:
    corpus = write_folder(tmp_path / "c", ITEMS)
    (corpus / "00000.jpg").rename(tmp_path / "late.jpg")
    run(table, corpus, embed=embedded)
    assert len(rows(table)) == (8 if embedded == "any" else 7)
    assert rejects(RejectsConfig(table=str(table))).by_reason == ({} if embedded == "any" else {"missing_image": 1})
    (tmp_path / "late.jpg").rename(corpus / "00000.jpg")
    run(table, corpus, embed=embedded)
    assert rows(table, "caption", "path") == sorted((item.caption, f"{item.key}.jpg") for item in ITEMS)
    assert rejects(RejectsConfig(table=str(table))).by_reason == {}
    assert run(table, corpus, embed=embedded).commits == 0


@pytest.mark.parametrize("run", [embed_into, sync_into])
def test_the_rows_of_a_file_that_is_rewritten_without_rows_leave(
    run: Callable[..., EmbedReport], table: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "c"
    write_parquet(corpus / "a.parquet", ITEMS[:5])
    write_parquet(corpus / "b.parquet", ITEMS[5:])
    run(table, corpus)
    write_parquet(corpus / "a.parquet", [])
    report = run(table, corpus)
    assert (report.removed, report.rows_in, rows(table, "id")) == (5, 0, [item.key for item in ITEMS[5:]])
    write_parquet(corpus / "b.parquet", [])
    assert (run(table, corpus).removed, rows(table)) == (3, [])
    with pytest.raises(ValueError, match="holds no rows"):
        run(table.with_name("new"), corpus)
    assert not Path(f"{table.with_name('new')}.lance").exists()


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_the_rows_of_a_list_that_is_rewritten_without_records_leave(name: str, table: Path, tmp_path: Path) -> None:
    full = {
        "list.csv": "caption,year\na cat,7\na dog,8\n",
        "list.jsonl": '{"caption": "a cat"}\n{"caption": "a dog"}\n',
    }
    (tmp_path / name).write_text(full[name])
    assert embed_into(table, tmp_path / name).written == 2
    (tmp_path / name).write_text("caption,year\n" if name == "list.csv" else "")
    assert (embed_into(table, tmp_path / name).removed, rows(table)) == (2, [])


def test_sync_of_a_glob_deletes_what_the_glob_would_have_named(table: Path, tmp_path: Path) -> None:
    corpus = write_folder(tmp_path / "c", ITEMS[:4])
    write_folder(corpus / "sub", ITEMS[4:])
    for text in corpus.rglob("*.txt"):
        text.unlink()
    embed_into(table, corpus, embed="image")
    for path in (corpus / "00000.jpg", corpus / "sub" / "00004.jpg"):
        path.unlink()
    assert sync_into(table, f"{corpus}/*.jpg", embed="image").removed == 1
    assert "00004.jpg" in names(table), "the star does not cross folders"
    assert sync_into(table, f"{corpus}/s*", embed="image").removed == 1, "a folder that the glob names"
    (corpus / "sub" / "00005.jpg").unlink()
    assert sync_into(table, f"{corpus}/**/*.jpg", embed="image").removed == 1
    assert names(table) == ["00001.jpg", "00002.jpg", "00003.jpg", "00006.jpg", "00007.jpg"]


def test_sync_of_a_folder_deletes_no_row_of_a_file_that_is_there_and_that_it_does_not_read(
    table: Path, tmp_path: Path
) -> None:
    corpus = write_folder(tmp_path / "c", ITEMS[:4])
    embed_into(table, f"{corpus}/*.[jt]*")
    captions = pa.table({"caption": ["one", "two"]})
    pq.write_table(captions, corpus / "a.parquet")
    report = sync_into(table, corpus, embed="any")
    assert (report.written, report.removed) == (2, 0)
    for suffix in (".jpg", ".txt"):
        (corpus / f"00000{suffix}").unlink()
    assert sync_into(table, corpus, embed="any").removed == 1, "nobody else could ever remove it"
    assert len(rows(table)) == 5


def test_rejects_of_a_moved_corpus_are_retried_where_it_is(table: Path, tmp_path: Path) -> None:
    corpus = write_folder(tmp_path / "old", ITEMS)
    (corpus / "00002.jpg").unlink()
    (corpus / "00002.jpg").symlink_to(tmp_path / "late.jpg")
    assert embed_into(table, corpus).rejected == {"image_not_found": 1}
    embed_into(table, corpus.rename(tmp_path / "new"))
    (tmp_path / "late.jpg").write_bytes(picture(2))
    report = retry(RetryConfig(table=str(table), reason=["image_not_found"]))
    assert (report.by_reason, len(rows(table))) == ({}, 8)


def test_a_corpus_in_a_store_moves_and_loses_files(tmp_path: Path) -> None:
    with moto() as endpoint:
        storage = options(endpoint)
        corpus = upload(endpoint, write_folder(tmp_path / "c", ITEMS), "old")
        write_folder(tmp_path / "sub", [Pair("sub", picture(99), "words", 1)])
        upload(endpoint, tmp_path / "sub", "old/sub")
        table = Path(f"{tmp_path}/db/t")
        assert embed_into(table, corpus, corpus_storage_options=storage).written == 9
        store = client(endpoint)
        keys = [entry["Key"] for entry in store.list_objects_v2(Bucket=BUCKET, Prefix="old/")["Contents"]]
        for key in keys:
            store.copy({"Bucket": BUCKET, "Key": key}, BUCKET, key.replace("old/", "new/", 1))
        with pytest.raises(ValueError, match="--corpus-name"):
            embed_into(table, f"s3://{BUCKET}/new", corpus_storage_options=storage)
        for key in keys:
            store.delete_object(Bucket=BUCKET, Key=key)
        moved = embed_into(table, f"s3://{BUCKET}/new", corpus_storage_options=storage)
        assert (moved.rows_in, moved.skipped) == (0, 9)
        for key in ("new/00000.jpg", "new/00000.txt", "new/sub/sub.jpg", "new/sub/sub.txt"):
            store.delete_object(Bucket=BUCKET, Key=key)
        report = sync_into(table, f"s3://{BUCKET}/new/*.[jt]*", corpus_storage_options=storage)
        assert (report.removed, len(rows(table))) == (1, 8)
