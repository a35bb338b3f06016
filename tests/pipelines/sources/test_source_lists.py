"""Lists of pictures: a cell changed by a wrong type guess, or a line that costs its file, would be silent harm."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_tools import column, good, opened, read, rows_of, touch

from pipelines.sources.captions import RECORDS_A_SHARD


def test_a_csv_names_pictures_beside_it(tmp_path: Path) -> None:
    text = 'image,caption,year,score,ok,id\na.jpg,"a, ""b""\nc",2001,1.5,true,0012\nsub/b.jpg,猫,,2,false,0013\n'
    source = opened(touch(tmp_path / "captions.csv", text.encode()), key="id")
    rows = rows_of(source)
    assert column(rows, "@captions") == [['a, "b"\nc'], ["猫"]]
    assert column(rows, "@image_uri") == [str(tmp_path / "a.jpg"), str(tmp_path / "sub/b.jpg")]
    assert column(rows, "image_path") == ["a.jpg", "sub/b.jpg"]
    assert column(rows, "@key") == column(rows, "id") == ["0012", "0013"], "0012 as a number is another id"
    assert [(row["year"], row["score"], row["ok"]) for row in rows] == [(2001, 1.5, True), (None, 2.0, False)]
    assert source.schema().field("year").type == pa.int64()
    assert source.modalities() == {"image", "text"}


def test_tsv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    touch(tmp_path / "a.tsv", b"\xef\xbb\xbfpath\ttext\tn\n1.jpg\tone\t1\n2.jpg\ttwo\t2\n")
    lines = [{"path": "1.jpg", "text": "one", "n": 1}, {"path": "2.jpg", "text": "two", "n": 2}]
    touch(tmp_path / "b.jsonl", ("\n".join(map(json.dumps, lines)) + "\n\n").encode())
    assert read(tmp_path / "a.tsv") == read(tmp_path / "b.jsonl")


def test_jsonl_captions_may_be_lists_and_fields_may_drift(tmp_path: Path) -> None:
    lines = [{"file_name": "1.jpg", "captions": ["a", "b"], "x": 1}, {"file_name": "2.jpg", "x": "s", "y": [1]}]
    touch(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, lines)).encode())
    touch(tmp_path / "1.jpg")
    rows = read(tmp_path)
    assert column(rows, "@captions") == [["a", "b"], None]
    assert column(rows, "x") == ["1", "s"]
    assert column(rows, "y") == [None, [1]]


def test_broken_lines_are_rejects_in_their_place(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.csv", b"id,image,caption\n1,1.jpg,a\n2,2.jpg\n3,3.jpg,\xff\n\n4,../4.jpg,d\n5,5.jpg,e\n")
    rows = read(path, key="id")
    assert column(rows, "@reason") == [None, "bad_record", "bad_record", "bad_record", None]
    assert column(good(rows), "@key") == ["1", "5"]
    path = touch(tmp_path / "b.jsonl", b'{"image": "1.jpg"}\n{"image": \n[1]\n{"image": "\xff"}\n{"image": "5.jpg"}')
    assert [row["@reason"] is None for row in read(path)] == [True, False, False, False, True]


def test_a_quote_that_is_never_closed_does_not_cost_the_file(tmp_path: Path) -> None:
    lines = [f"{i}.jpg,caption {i}\n" for i in range(200_000)]
    lines[100] = '100.jpg,"open\n'
    source = opened(touch(tmp_path / "a.csv", ("image,caption\n" + "".join(lines)).encode()))
    rows = rows_of(source)
    assert len(good(rows)) > 100_000
    assert [row["@reason"] for row in rows].count("bad_record") <= 2


def test_a_list_is_cut_into_ranges_that_are_read_alone(tmp_path: Path) -> None:
    n = 2 * RECORDS_A_SHARD + 5
    text = "image,caption\n" + "".join(f'{i}.jpg,"line\n{i}"\n\n' for i in range(n))
    source = opened(touch(tmp_path / "a.csv", text.encode()))
    shards = source.shards()
    assert [(shard.first_row, shard.rows) for shard in shards] == [(0, 1024), (1024, 1024), (2048, 5)]
    assert next(iter(source.read(shards[1])))["@captions"][0].as_py() == ["line\n1024"]
    assert column(rows_of(source), "image_path") == [f"{i}.jpg" for i in range(n)]


cells = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from('",\n\t'), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=20), st.sampled_from(["csv", "tsv"]))
def test_whatever_the_csv_module_writes_is_read_back(tmp_path: Path, values: list[tuple[str, str]], kind: str) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter="\t" if kind == "tsv" else ",")
    writer.writerows([("id", "caption", "image"), *((a, b, "x.jpg") for a, b in values)])
    path = touch(tmp_path / f"a.{kind}", buffer.getvalue().encode())
    assert column(read(path), "@captions") == [[b] for _, b in values]


def test_pictures_may_lie_in_images(tmp_path: Path) -> None:
    touch(tmp_path / "images" / "1.jpg")
    touch(tmp_path / "results.csv", b"image,caption\nhttp://x/y.jpg,a\n1.jpg,b\n")
    assert column(read(tmp_path), "@image_uri") == ["http://x/y.jpg", str(tmp_path / "images" / "1.jpg")]


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.csv", b"image,caption\n"), ("a.jsonl", b""), ("a.tsv", b""), ("a.json", b'{"images": [], "annotations": []}')],
)
def test_a_list_without_records_is_a_shard_of_no_rows(name: str, data: bytes, tmp_path: Path) -> None:
    """It may have held some, and a run must see that they are gone."""
    source = opened(touch(tmp_path / name, data))
    assert [shard.rows for shard in source.shards()] == [0]
    assert rows_of(source) == []


def test_a_list_without_a_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither pictures nor captions.*first line of a CSV holds the names"):
        opened(touch(tmp_path / "a.csv", b"1.jpg,a cat\n2.jpg,a dog\n"))
    with pytest.raises(ValueError, match=r"no column 'x' \(--columns.key\); columns are image, caption"):
        opened(touch(tmp_path / "c.csv", b"image,caption\n1.jpg,a\n"), key="x")
    with pytest.raises(ValueError, match="name each column once"):
        opened(touch(tmp_path / "d.csv", b"image,image\n1.jpg,a\n"))


def test_which_list_is_told_by_its_name_or_asked_for(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        touch(tmp_path / name, b"image,caption\n1.jpg,a\n")
    with pytest.raises(ValueError, match=r"expected one list of pictures, found a.csv, b.csv; name the file"):
        opened(tmp_path)
    touch(tmp_path / "captions.tsv", b"image\tcaption\n1.jpg\tchosen\n")
    assert column(read(tmp_path), "@captions") == [["chosen"]]


def write_coco(folder: Path) -> Path:
    images = [{"id": i, "file_name": f"{i:03d}.jpg", "width": 10 * i} for i in (1, 2, 3)]
    annotations = [(1, " a cat "), (3, "a boat"), (1, "一只猫"), (9, "of nothing")]
    data: dict[str, Any] = {
        "images": images,
        "annotations": [{"id": n, "image_id": i, "caption": c} for n, (i, c) in enumerate(annotations)],
    }
    touch(folder / "val2017" / "001.jpg")
    return touch(folder / "annotations" / "captions_val2017.json", json.dumps(data).encode())


def test_coco_gives_a_record_a_picture(tmp_path: Path) -> None:
    source = opened(write_coco(tmp_path), key="id")
    rows = rows_of(source)
    assert column(rows, "@key") == column(rows, "@item") == ["1", "2", "3", "9"]
    assert column(rows, "@captions") == [["a cat", "一只猫"], None, ["a boat"], ["of nothing"]]
    assert column(rows, "@image_uri")[:3] == [str(tmp_path / "val2017" / f"{i:03d}.jpg") for i in (1, 2, 3)]
    assert rows[3]["@image_uri"] is None, "a caption of no picture becomes a reject, not nothing"
    assert column(rows, "width") == [10, 20, 30, None]
    assert column(rows, "image_path")[:1] == ["001.jpg"]


def test_karpathy_gives_sentences_and_split(tmp_path: Path) -> None:
    images = [
        {
            "filename": "1.jpg",
            "filepath": "val",
            "sentences": [{"raw": "a"}, {"raw": "b "}],
            "split": "test",
            "imgid": 7,
        },
        {"filename": "2.jpg", "sentences": [], "split": "train", "imgid": 8, "sentids": [1, 2]},
    ]
    touch(tmp_path / "images" / "val" / "1.jpg")
    path = touch(tmp_path / "dataset.json", json.dumps({"dataset": "x", "images": images}).encode())
    rows = read(path, key="imgid")
    assert column(rows, "@key") == column(rows, "@item") == ["7", "8"]
    assert column(rows, "@captions") == [["a", "b"], []]
    assert column(rows, "split") == ["test", "train"]
    assert column(rows, "@image_uri") == [str(tmp_path / "images/val/1.jpg"), str(tmp_path / "images/2.jpg")]


def test_json_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither COCO captions nor a Karpathy split"):
        opened(touch(tmp_path / "a.json", b'[{"image": "1.jpg"}]'))
    boxes = b'{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "bbox": [1]}]}'
    with pytest.raises(ValueError, match=r"cannot be read as coco: KeyError: 'caption'"):
        opened(touch(tmp_path / "b.json", boxes))
    with pytest.raises(ValueError, match="the format fixes this field"):
        opened(write_coco(tmp_path), caption="x")
    with pytest.raises(ValueError, match=r"no column 'x' \(--columns.item\); columns are id"):
        opened(write_coco(tmp_path), item="x")
