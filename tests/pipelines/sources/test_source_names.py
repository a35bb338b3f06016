"""Names of columns and files: what no table takes is refused or rejected by name, and what only looks odd is read."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from types import ModuleType

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lance.fragment import write_fragments
from source_tools import column, opened, read, touch

from pipelines.curate.deduplication import marking
from pipelines.rows import blocks, contract
from pipelines.sources.locate import file_of, read_image
from pipelines.sources.records import check_passthrough, name_problem
from pipelines.store.storage import Storage, absolute

BAD = b"caf\xe9"
SHOWN = "caf\\xe9"


def names_in(module: ModuleType) -> set[str]:
    """The strings in a module's constants, also within tuples and sets."""
    constants = [value for name, value in vars(module).items() if name.isupper() and not name.startswith("_")]
    found = {value for value in constants if isinstance(value, str)}
    return found | {name for group in constants if isinstance(group, tuple | frozenset) for name in group}


# Constants of the contract that are roles or fields of records, which a corpus may use for its columns.
FREE = {*contract.RECORD_FIELDS} - {contract.IMAGE, contract.IMAGE_URI}
OURS = sorted({*names_in(blocks), *names_in(contract)} - FREE - {contract.RECORD_PREFIX})


@pytest.mark.parametrize("name", [*OURS, *(name + "x" for name in OURS if name.endswith("_")), "@key"])
def test_every_name_of_ours_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"column '.*' has a name that isthmus reserves; rename it") as caught:
        check_passthrough(["fine", name], "corpus")
    assert repr(name) in str(caught.value)


def test_the_list_of_our_names_is_complete() -> None:
    assert {"_known_", "_seconds_", "_ready", "_last", "image_vector", "isthmus_shard", "isthmus_retyped_"} <= set(OURS)
    assert {name.value for name in contract.Reason}.isdisjoint(OURS)
    assert name_problem(marking.DUPLICATE_OF) is None, "a corpus may bring the marks of an exported table"


def lance_keeps(name: str, uri: Path) -> bool:
    """Whether Lance makes a table with a column of this name, takes a row, and gives it back."""
    rows = pa.table({"n": [1], name: ["v"]})
    try:
        dataset = lance.write_dataset(rows.schema.empty_table(), uri, schema=rows.schema)
        written = write_fragments(rows, str(uri), mode="append")
        dataset = lance.LanceDataset.commit(uri, lance.LanceOperation.Append(written), read_version=dataset.version)
        return bool(dataset.take([0], columns=[name])[name].to_pylist() == ["v"])
    except BaseException as error:  # a panic of Lance is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return False


ODD = ["a.b", ".a", "a.", "a`b", "", "a\0b", "_rowid", "_rowaddr", "_rowoffset", "_row_created_at_version"]
ODD += [
    "_row_last_updated_at_version",
    'a"b',
    "a'b",
    " ",
    "a b",
    "é",
    "价格",
    "a/b",
    "a[b]",
    "a\\b",
    "a\nb",
    "*",
    "select",
]
ODD += ["a-b", "1a", "_id", "rowid", "_ROWID", "a,b", "a(b", "a;b", "%", "x" * 300, "__index_level_0__", "_rowver"]


@pytest.mark.parametrize("name", ODD)
def test_we_refuse_the_names_that_lance_refuses_and_no_other(name: str, tmp_path: Path) -> None:
    assert (name_problem(name) is None) == lance_keeps(name, tmp_path / "t.lance")


@pytest.mark.parametrize("name", ["_distance", "_score", "_relevance_score"])
def test_the_names_of_scores_in_what_lancedb_returns_are_refused(name: str) -> None:
    assert name_problem(name) == "has a name that Lance reserves"


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_names_in_lists_are_refused_too(suffix: str, tmp_path: Path) -> None:
    lines = {"jsonl": '{"caption": "c", "a.b": 1}\n', "csv": "caption,a.b\nc,1\n"}
    with pytest.raises(ValueError, match=r"column 'a\.b' has a dot in its name; rename it"):
        opened(touch(tmp_path / f"c.{suffix}", lines[suffix].encode()))
    touch(tmp_path / "s.jsonl", b'{"caption": "c", "\\ud800": 1}\n')
    with pytest.raises(ValueError, match=r"column '\\ud800' has a name that is not UTF-8"):
        opened(tmp_path / "s.jsonl")


def test_a_path_column_that_no_table_takes_is_stored_under_our_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"img.path": ["a.jpg"], "caption": ["c"]}), tmp_path / "c.parquet")
    rows = read(tmp_path / "c.parquet", uri="img.path")
    assert (rows[0]["image_path"], rows[0]["@image_uri"]) == ("a.jpg", str(tmp_path / "a.jpg"))


def put(folder: Path, name: bytes, data: bytes = b"x") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / os.fsdecode(name)).write_bytes(data)


def test_a_picture_whose_name_is_not_utf8_is_one_reject(tmp_path: Path) -> None:
    put(tmp_path, BAD + b".jpg")
    put(tmp_path, BAD + b".txt", b"a caption")
    put(tmp_path, b"other" + BAD + b".txt", b"a text alone")
    put(tmp_path, b"good.jpg")
    rows = read(tmp_path)
    assert sorted(zip(column(rows, "path"), column(rows, "@reason"), strict=True)) == [
        (f"{SHOWN}.jpg", "bad_record"),
        ("good.jpg", None),
        (f"other{SHOWN}.txt", "bad_record"),
    ]
    bad = next(row for row in rows if row["path"] == f"{SHOWN}.jpg")
    assert bad["@image_uri"] == f"{tmp_path}/{SHOWN}.jpg"
    assert bad["@message"].endswith(
        f"{SHOWN}.jpg: the name is not UTF-8 (\\xNN stands for a byte of it); rename the file"
    )


def test_files_in_a_folder_whose_name_is_not_utf8_are_rejects(tmp_path: Path) -> None:
    put(tmp_path / os.fsdecode(BAD), b"a.jpg")
    put(tmp_path, b"good.jpg")
    rows = read(tmp_path)
    assert sorted(zip(column(rows, "path"), column(rows, "@reason"), strict=True)) == [
        (f"{SHOWN}/a.jpg", "bad_record"),
        ("good.jpg", None),
    ]


@pytest.mark.parametrize("suffix", ["parquet", "tar"])
def test_a_file_of_many_records_whose_name_is_not_utf8_is_one_reject(suffix: str, tmp_path: Path) -> None:
    if suffix == "parquet":
        pq.write_table(pa.table({"caption": ["c", "d"], "n": [1, 2]}), tmp_path / "good.parquet")
    else:
        source = touch(tmp_path / "text" / "1.txt", b"c")
        with tarfile.open(tmp_path / "good.tar", "w") as made:
            made.add(source, "1.txt")
            made.add(source, "2.txt")
        source.unlink()
    put(tmp_path, BAD + f".{suffix}".encode(), (tmp_path / f"good.{suffix}").read_bytes())
    rows = read(tmp_path)
    assert column(rows, "@reason") == ["bad_record", None, None]
    assert rows[0]["@image_uri"] == f"{tmp_path}/{SHOWN}.{suffix}"
    (tmp_path / f"good.{suffix}").unlink()
    with pytest.raises(ValueError, match=r"is not UTF-8 .*; rename the file"):
        opened(tmp_path)


def test_a_list_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    put(tmp_path, BAD + b".csv", b"caption\nc\n")
    with pytest.raises(ValueError, match=r"caf\\xe9\.csv: the name is not UTF-8"):
        opened(tmp_path)
    with pytest.raises(ValueError, match=r"caf\\xe9: the name is not UTF-8 .*or name it by a link"):
        opened(tmp_path / os.fsdecode(BAD))


def test_tar_members_whose_names_are_not_utf8_keep_keys_of_their_own(tmp_path: Path) -> None:
    text = touch(tmp_path / "text", b"c")
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT) as made:
        for name in (b"caf\xe9.txt", b"caf\xe8.txt"):
            made.add(text, os.fsdecode(name))
    assert column(read(tmp_path / "0.tar", key="__key__"), "@key") == ["caf\\xe9", "caf\\xe8"]


LIKE_LOCATORS = ["http:__x.jpg", "s3:/b.jpg", "a:/b.jpg", "x#row=1&column=a.jpg", "y#offset=0&size=1.jpg", "~/z.jpg"]


def test_files_whose_names_look_like_locators_are_read_as_the_files_that_they_are(tmp_path: Path) -> None:
    for name in LIKE_LOCATORS:
        touch(tmp_path / name, name.encode())
    rows = read(tmp_path)
    assert sorted(column(rows, "path")) == sorted(LIKE_LOCATORS)
    for row in rows:
        assert row["@reason"] is None
        assert file_of(row["@image_uri"]) == row["@image_uri"]
        assert read_image(row["@image_uri"], Storage()) == row["path"].encode()


@pytest.mark.parametrize("path", ["a://b.jpg", "s3://b.jpg", "http://x/b.jpg"])
def test_a_list_may_name_a_file_that_looks_like_a_uri(path: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_path": [path]}), tmp_path / "c.parquet")
    assert read(tmp_path / "c.parquet")[0]["@image_uri"] == path
    touch(tmp_path / path, b"here")
    uri = read(tmp_path / "c.parquet")[0]["@image_uri"]
    assert read_image(uri, Storage()) == b"here"


def test_a_corpus_may_be_named_like_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="scheme 'a' is not supported"):
        absolute("a://b.jpg")
    touch(tmp_path / "a:" / "b.jpg")
    assert absolute("a://b.jpg") == str(tmp_path / "a:" / "b.jpg")
