"""A folder of pictures: no picture may be lost because of its name, and listing must not take minutes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from source_tools import column, opened, read, rows_of, touch

from pipelines.rows.contract import Columns
from pipelines.sources import open_source
from pipelines.sources.listing import list_files
from pipelines.sources.locate import read_image
from pipelines.store.storage import Storage


def test_pictures_and_texts_of_a_stem_are_one_record(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.JPG", b"one")
    touch(tmp_path / "a" / "1.txt", "\ufeffa cat\n\n 一只猫 \n".encode())
    touch(tmp_path / "b.png")
    touch(tmp_path / "words.txt", b"only words")
    touch(tmp_path / "notes.md")
    source = opened(tmp_path, key="stem", item="path")
    rows = rows_of(source)
    assert column(rows, "@key") == ["a/1", "b", "words"]
    assert column(rows, "@item") == column(rows, "path") == ["a/1.JPG", "b.png", "words.txt"]
    assert column(rows, "@captions") == [["a cat", "一只猫"], None, ["only words"]]
    assert [uri is None for uri in column(rows, "@image_uri")] == [False, False, True]
    assert read_image(rows[0]["@image_uri"], Storage()) == b"one"
    assert source.modalities() == {"image", "text"}


def test_a_camera_names_its_pictures_with_an_underscore(tmp_path: Path) -> None:
    """Parquet readers leave such files out; here they are the corpus."""
    touch(tmp_path / "_DSC0001.jpg")
    touch(tmp_path / ".hidden.jpg")
    assert column(read(tmp_path), "path") == ["_DSC0001.jpg"]


def test_links_are_followed_and_a_broken_one_is_not_lost(tmp_path: Path) -> None:
    """Data sets are often folders of links, which fsspec's listing leaves out."""
    touch(tmp_path / "store" / "x.jpg", b"x")
    corpus = tmp_path / "c"
    corpus.mkdir()
    (corpus / "file.jpg").symlink_to("../store/x.jpg")
    (corpus / "folder").symlink_to("../store")
    (corpus / "loop").symlink_to(".")
    (corpus / "broken.jpg").symlink_to("nowhere.jpg")
    assert column(read(corpus), "path") == ["broken.jpg", "file.jpg", "folder/x.jpg"]


def test_a_changed_caption_changes_the_shard(tmp_path: Path) -> None:
    touch(tmp_path / "1.jpg")
    before = opened(tmp_path).shards()[0].version
    touch(tmp_path / "1.TXT", b"a cat")
    with_text = opened(tmp_path).shards()[0].version
    touch(tmp_path / "1.TXT", b"a small cat")
    assert len({before, with_text, opened(tmp_path).shards()[0].version}) == 3
    assert column(read(tmp_path), "@captions") == [["a small cat"]]


def test_a_text_that_is_not_utf8_is_a_reject(tmp_path: Path) -> None:
    touch(tmp_path / "1.jpg")
    touch(tmp_path / "1.txt", b"\xff\xfe")
    row = read(tmp_path, key="stem")[0]
    assert (row["@key"], row["@reason"]) == ("1", "bad_record")


def test_two_pictures_of_one_stem_cannot_be_keyed_by_it(tmp_path: Path) -> None:
    touch(tmp_path / "1.jpg")
    touch(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"--columns\.key path"):
        opened(tmp_path, key="stem")
    assert column(read(tmp_path, key="path"), "@key") == ["1.jpg", "1.png"]


def test_other_roles_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "1.jpg")
    with pytest.raises(ValueError, match=r"--columns.caption 'text': a folder has the fields path and stem"):
        opened(tmp_path, caption="text")


def test_a_single_picture_is_a_corpus(tmp_path: Path) -> None:
    path = touch(tmp_path / "cat.jpg")
    assert column(read(path), "path") == ["cat.jpg"]


def test_a_dot_in_the_name_of_the_folder_does_not_move_its_root(tmp_path: Path) -> None:
    touch(tmp_path / "data.v2" / "1.jpg")
    assert column(read(tmp_path / "data.v2"), "path") == ["1.jpg"]


def test_brackets_in_a_folder_that_exists_are_no_glob(tmp_path: Path) -> None:
    touch(tmp_path / "set[1]" / "1.jpg")
    assert column(read(tmp_path / "set[1]"), "path") == ["1.jpg"]


def test_nothing_there_says_so(tmp_path: Path) -> None:
    for corpus in (tmp_path, tmp_path / "nowhere", tmp_path / "*.parquet"):
        with pytest.raises(FileNotFoundError, match="nothing is there; give a file"):
            opened(corpus)


def test_files_that_nobody_reads_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.docx")
    touch(tmp_path / "LICENSE")
    with pytest.raises(ValueError, match=r"holds \.docx, files without an extension, none of which.*--format"):
        opened(tmp_path)
    with pytest.raises(ValueError, match=r"holds no \.parquet or \.pq file, so it is not parquet"):
        opened(tmp_path, format="parquet")
    with pytest.raises(ValueError, match="format 'xml': not known; formats are auto, parquet"):
        opened(tmp_path, format="xml")


def test_parquet_beside_tars_is_ambiguous_unless_it_only_describes_them(tmp_path: Path) -> None:
    """img2dataset writes 00000.parquet, without pictures, beside 00000.tar."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from test_source_webdataset import trio, write

    write(tmp_path / "00000.tar", trio("1"))
    pq.write_table(pa.table({"caption": ["side"]}), tmp_path / "00000.parquet")
    touch(tmp_path / "00000_stats.json", b"{}")
    assert column(read(tmp_path), "@captions") == [["text 1"]]
    pq.write_table(pa.table({"caption": ["other"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"2 Parquet files and 1 tars; choose with --format"):
        opened(tmp_path)


def test_many_tiny_files_are_listed_quickly(tmp_path: Path) -> None:
    for i in range(5_000):
        with open(tmp_path / f"{i:05d}.jpg", "wb") as file:  # noqa: PTH123  (Path.write_bytes doubles the set-up)
            file.write(b"x")
    started = time.perf_counter()
    shards = open_source(str(tmp_path), columns=Columns(), storage=Storage()).shards()
    assert time.perf_counter() - started < 2.0
    assert len({shard.uri for shard in shards}) == 5_000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_rights_says_so(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(PermissionError, match="check credentials and rights"):
        list_files(str(tmp_path), Storage())
