"""Tars come torn, with odd members and all kinds of metadata; every readable record must be read, once."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from source_tools import column, good, opened, read, rows_of, touch

from pipelines.sources.locate import read_image
from pipelines.store.storage import Storage


def write(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def meta(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def trio(key: str, /, **fields: Any) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.jpg", f"jpg {key}".encode()),
        (f"{key}.txt", f"text {key}\n".encode()),
        (f"{key}.json", meta(**fields)),
    ]


def test_members_of_a_name_are_one_record(tmp_path: Path) -> None:
    members = [*trio("a/001", key="k1", n=1), *trio("a/002", key="k2", n=2)]
    source = opened(write(tmp_path / "0.tar", members), key="key")
    rows = rows_of(source)
    assert column(rows, "@key") == ["k1", "k2"]
    assert column(rows, "key") == ["k1", "k2"]
    assert column(rows, "@captions") == [["text a/001"], ["text a/002"]]
    assert column(rows, "@image") == [b"jpg a/001", b"jpg a/002"]
    assert source.schema() == pa.schema([("key", pa.string()), ("n", pa.int64())])
    assert [read_image(row["@image_uri"], Storage()) for row in rows] == column(rows, "@image")
    assert source.modalities() == {"image", "text"}


def test_the_key_may_be_the_member_name(tmp_path: Path) -> None:
    assert column(read(write(tmp_path / "0.tar", trio("./a/1")), key="__key__"), "@key") == ["a/1"]


def test_the_caption_may_be_in_the_json(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", [("1.PNG", b"p"), ("1.json", meta(caption=["a", "b"], title="t"))])
    rows = read(path)
    assert column(rows, "@captions") == [["a", "b"]]
    assert column(rows, "@image") == [b"p"]
    path = write(tmp_path / "1.tar", [("1.png", b"p"), ("1.json", meta(title="t"))])
    assert column(read(path, caption="title"), "@captions") == [["t"]]


def test_roles_may_name_suffixes(tmp_path: Path) -> None:
    members = [("1.mask.png", b"mask"), ("1.jpg", b"photo"), ("1.txt", b"english"), ("1.zh.txt", "猫".encode())]
    path = write(tmp_path / "0.tar", members)
    rows = read(path, image="jpg", caption="zh.txt")
    assert (rows[0]["@image"], rows[0]["@captions"]) == (b"photo", ["猫"])
    with pytest.raises(ValueError, match=r"no column 'webp' \(--columns.image\); columns are jpg"):
        opened(path, image="webp")


def test_fields_get_one_type_and_misfits_are_null(tmp_path: Path) -> None:
    first = [*trio("1", n=1, f=1, s="x", b=True, tags=["a"], mix=1, deep={"a": 1}), *trio("2", f=2.5, mix="t", tags=[])]
    write(tmp_path / "0.tar", first)
    late = [m for i in range(3, 1_010) for m in [(f"{i}.json", meta(n=i))]] + trio("x", n="word", new=1)
    write(tmp_path / "1.tar", late)
    source = opened(tmp_path)
    kinds = {field.name: str(field.type) for field in source.schema()}
    assert kinds == {
        "n": "int64",
        "f": "double",
        "s": "string",
        "b": "bool",
        "tags": "list<item: string>",
        "mix": "string",
        "deep": "string",
    }
    rows = rows_of(source)
    assert (rows[0]["mix"], rows[1]["mix"], rows[0]["deep"]) == ("1", "t", '{"a": 1}')
    assert (rows[-1]["n"], rows[-1]["@captions"]) == (None, ["text x"])


def test_what_utf8_cannot_hold_does_not_stop_the_job(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", [("1.json", b'{"caption": "half \\ud800", "a": "\\udfff", "n": 1e400}')])
    rows = read(path)
    assert rows[0]["@captions"] == ["half ?"]
    assert rows[0]["a"] == "?"


def test_broken_members_are_rejects_of_their_record_alone(tmp_path: Path) -> None:
    bad_json = [("2.jpg", b"2"), ("2.json", b"{no")]
    bad_text = [("3.jpg", b"3"), ("3.txt", b"\xff\xfe\xff")]
    rows = read(write(tmp_path / "0.tar", [*trio("1"), *bad_json, *bad_text, *trio("4")]), key="__key__")
    assert column(rows, "@reason") == [None, "bad_record", "bad_record", None]
    assert column(rows, "@key") == ["1", "2", "3", "4"]
    assert "JSON" in rows[1]["@message"]
    assert "UTF-8" in rows[2]["@message"]


def test_hidden_members_folders_and_links_are_no_records(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", [("._1.jpg", b"mac"), *trio("1"), ("2.npy", b"array")])
    with tarfile.open(path, "a") as tar:
        for name, kind in (("dir", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    rows = read(path, key="__key__")
    assert column(rows, "@key") == ["1", "2"]
    assert rows[1]["@image"] is None


def test_names_that_climb_are_only_names(tmp_path: Path) -> None:
    path = write(tmp_path / "c" / "0.tar", [("../../up.jpg", b"u"), ("/etc/abs.jpg", b"a")])
    before = sorted(p for p in tmp_path.rglob("*"))
    rows = read(path, key="__key__")
    assert column(rows, "@key") == ["../../up", "/etc/abs"]
    assert column(rows, "@image") == [b"u", b"a"]
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_wherever_a_tar_is_cut_the_records_before_come_and_one_reject(tmp_path: Path) -> None:
    """tarfile ends silently at half a header; a record would be lost, or come without its caption."""
    whole = write(tmp_path / "w.tar", [m for i in range(4) for m in trio(f"{i}", n=i)]).read_bytes()
    end_of_data = 4 * 3 * 1024
    for cut in range(1, end_of_data + 1, 211):
        touch(tmp_path / "w.tar", whole[:cut])
        if cut < 3 * 1024 + 512:
            with pytest.raises(ValueError, match="torn"):
                opened(tmp_path / "w.tar")
            continue
        rows = rows_of(opened(tmp_path / "w.tar", key="__key__"))
        fine = good(rows)
        assert column(fine, "@key") == [str(i) for i in range(len(fine))], cut
        assert column(fine, "@captions") == [[f"text {i}"] for i in range(len(fine))], cut
        assert column(fine, "@image") == [f"jpg {i}".encode() for i in range(len(fine))], cut
        assert [row["@reason"] for row in rows[len(fine) :]] == ["bad_record"], cut
        assert len(fine) >= cut // (3 * 1024) - 1
    touch(tmp_path / "w.tar", whole[: end_of_data + 1024])
    rows = rows_of(opened(tmp_path / "w.tar"))
    assert column(rows, "@reason") == [None] * 4


def test_one_broken_tar_does_not_stop_the_others(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", trio("1"))
    touch(tmp_path / "1.tar", b"not a tar at all" * 100)
    touch(tmp_path / "2.tar", b"")
    rows = read(tmp_path)
    assert column(rows, "@reason") == [None, "bad_record", "bad_record"]
    assert rows[1]["@image_uri"].endswith("1.tar")


def test_a_corpus_of_broken_tars_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "1.tar", b"nothing" * 500)
    with pytest.raises(ValueError, match=r"no record can be read; .*1\.tar"):
        opened(tmp_path)


def test_compressed_tars_are_read_though_their_pictures_have_no_address(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "0.tar.gz", trio("1"), mode="w:gz"))
    assert (rows[0]["@image"], rows[0]["@image_uri"]) == (b"jpg 1", None)


def test_a_missing_field_and_a_reserved_one_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", trio("1", n=1))
    with pytest.raises(ValueError, match=r"no column 'sha' \(--columns.key\); columns are __key__, n"):
        opened(path, key="sha")
    with pytest.raises(ValueError, match="holds its pictures itself"):
        opened(path, uri="n")
    with pytest.raises(ValueError, match="'image_vector'"):
        opened(write(tmp_path / "1.tar", trio("1", image_vector=1)))


def test_batches_are_bounded(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "0.tar", [(f"{i}.jpg", bytes(1 << 20)) for i in range(20)]))
    tables = list(source.read(source.shards()[0]))
    assert max(table.nbytes for table in tables) < 10 << 20
    assert sum(table.num_rows for table in tables) == 20
