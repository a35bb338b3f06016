"""Malicious or unusual rows: each becomes a row or a reject, and no other row is affected."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import pairs, picture, write_parquet
from engines import on_engine
from PIL import Image

from jobs.embed import EmbedConfig
from jobs.embed import run as embed
from jobs.search import SearchConfig
from jobs.search import run as search

pytestmark = pytest.mark.usefixtures("engine")

KEYS = {
    "nul": "a\0b",
    "quote": "x'); DROP TABLE t; --",
    "markup": "<script>alert(1)</script>",
    "traversal": "../../../etc/passwd",
    "right to left": "\u202egnp.exe",
    "zero width": "a\u200bb\ufeffc",
    "long": "k" * 100_000,
    "newline": "one\ntwo\r\nthree",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "number": "1e309",
}
CAPTIONS = {
    "zero width only": "\u200b\u200b\ufeff",
    "right to left": "\u202eשלום עולם مرحبا",
    "ten megabytes": "word " * 2_000_000,
    "one word of a megabyte": "w" * 1_000_000,
    "nul": "a\0caption",
    "control": "".join(map(chr, range(1, 32))),
    "combining": "e" + "\u0301" * 5_000,
    "template": "{{ 7 * 7 }} ${jndi:ldap://x} %s%n",
}


def _size(width: int, height: int, mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = {
    "one pixel": (_size(1, 1), None),
    "one line": (_size(5_000, 1), None),
    "one column": (_size(1, 5_000), None),
    "bits": (_size(64, 64, "1"), None),
    "palette": (_size(64, 64, "P"), None),
    "alpha": (_size(64, 64, "RGBA"), None),
    "sixteen bits": (_size(64, 64, "I;16"), None),
    "30,000 x 30,000": (_size(30_000, 30_000, "1"), "too_many_pixels"),
}


def test_hostile_keys_captions_and_pictures_cost_nobody_else(tmp_path: Path) -> None:
    plain = pairs(20)
    keys = [*(p.key for p in plain), *KEYS.values(), *(f"c-{n}" for n in CAPTIONS), *(f"p-{n}" for n in PICTURES)]
    hostile = len(KEYS) + len(CAPTIONS)
    images = [
        *(p.image for p in plain),
        *(picture(500 + i) for i in range(hostile)),
        *(d for d, _ in PICTURES.values()),
    ]
    captions = [*(p.caption for p in plain), *("a thing" for _ in KEYS), *CAPTIONS.values(), *("it" for _ in PICTURES)]
    table = pa.table({"id": keys, "image": pa.array(images, pa.binary()), "caption": captions})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=8)
    where = str(tmp_path / "db" / "t")
    given = {"corpus": str(tmp_path / "c.parquet"), "table": where, "encoder": "fake", "columns": {"key": "id"}}

    report = embed(EmbedConfig(**given, **on_engine()))  # type: ignore[arg-type]
    rejects = lance.dataset(f"{where}_rejects.lance").to_table().to_pylist()
    wanted = {f"p-{name}": reason for name, (_, reason) in PICTURES.items() if reason}
    # No visible content, so it counts as missing.
    unseen = {"c-zero width only": "missing_caption"}
    assert {row["row_id"]: row["reason"] for row in rejects} in (wanted, wanted | unseen)
    rows = lance.dataset(f"{where}.lance").to_table(columns=["row_id", "caption"]).to_pylist()
    assert {row["row_id"] for row in rows} == set(keys) - {row["row_id"] for row in rejects}
    assert {row["caption"] for row in rows} >= {CAPTIONS["ten megabytes"], CAPTIONS["nul"]}
    assert embed(EmbedConfig(**given, **on_engine())).skipped == report.rows_in == len(keys)  # type: ignore[arg-type]

    page = tmp_path / "page.html"
    for key in (KEYS["quote"], KEYS["nul"], KEYS["markup"], KEYS["traversal"]):
        found = search(SearchConfig(table=where, like=key, k=len(keys), html=str(page)))
        assert found.hits.rows.num_rows >= len(rows) - 1, key
    assert "<script>alert(1)" not in page.read_text()


def test_members_that_leave_their_tar_are_names_and_write_nothing(tmp_path: Path) -> None:
    names = ["../../evil", "/tmp/isthmus-evil", "a/../../b", "normal", "dir/normal"]
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as tar:
        for i, name in enumerate(names):
            for suffix, data in ((".jpg", picture(i)), (".txt", b"a caption")):
                member = tarfile.TarInfo(name + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        device = tarfile.TarInfo("device.jpg")
        device.type = tarfile.CHRTYPE
        tar.addfile(device)
    before = sorted(path.name for path in tmp_path.iterdir())
    report = embed(
        EmbedConfig(corpus=str(tmp_path / "tars"), table=str(tmp_path / "db" / "t"), encoder="fake", **on_engine())
    )
    assert report.written == len(names)
    rows = lance.dataset(str(tmp_path / "db" / "t.lance")).to_table(columns=["image_uri"]).to_pylist()
    assert all(str(row["image_uri"]).startswith(str(tmp_path / "tars" / "0.tar")) for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "db"])
    assert not Path("/tmp/isthmus-evil.jpg").exists()


def _rejects(table: Path) -> list[dict[str, object]]:
    return lance.dataset(f"{table}_rejects.lance").to_table().to_pylist()


def test_a_file_name_that_is_not_utf8_is_one_reject_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder, table = tmp_path / "c", tmp_path / "db" / "t"
    folder.mkdir()
    for pair in pairs(3):
        (folder / f"{pair.key}.jpg").write_bytes(pair.image)
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(picture(7))
    (folder / "x#row=1&column=a.jpg").write_bytes(picture(8))
    options = {"corpus": str(folder), "table": str(table), "encoder": "fake", **on_engine()}
    report = embed(EmbedConfig(**options))
    assert (report.rows_in, report.written, report.rejected) == (5, 4, {"bad_record": 1})
    (reject,) = _rejects(table)
    assert reject["source"] == f"{folder}/caf\\xe9.jpg"
    assert "the name is not UTF-8" in str(reject["message"])
    assert embed(EmbedConfig(**options)).rows_in == 0, "it is settled"
    (folder / os.fsdecode(b"caf\xe9.jpg")).rename(folder / "café.jpg")
    assert embed(EmbedConfig(**options)).written == 1


def test_a_parquet_file_whose_name_is_not_utf8_is_one_reject(tmp_path: Path) -> None:
    folder, table = tmp_path / "c", tmp_path / "db" / "t"
    write_parquet(folder / "a.parquet", pairs(3))
    write_parquet(folder / "b.parquet", pairs(3, seed=1)).rename(folder / os.fsdecode(b"\xff.parquet"))
    report = embed(EmbedConfig(corpus=str(folder), table=str(table), encoder="fake", **on_engine()))
    assert (report.written, report.rejected) == (3, {"bad_record": 1})
    assert [row["source"] for row in _rejects(table)] == [f"{folder}/\\xff.parquet"]
