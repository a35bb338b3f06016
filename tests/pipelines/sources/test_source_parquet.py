"""A misread Parquet corpus gives wrong vectors for good: roles, types, damage and cuts."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_tools import column, good, opened, read, rows_of, touch

from pipelines.sources.listing import FileInfo
from pipelines.sources.locate import read_image
from pipelines.sources.row_groups import MAX_SHARD_BYTES, MAX_SHARD_ROWS, cut_shards
from pipelines.store.storage import Storage


def write(path: Path, columns: dict[str, object], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_roles_are_found_and_the_rest_passes_through(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.parquet",
        {"jpg": [b"a", b"b"], "url": ["u1", "u2"], "text": ["one", "two"], "year": pa.array([1, 2], pa.int16())},
    )
    source = opened(path)
    rows = rows_of(source)
    assert column(rows, "@image") == [b"a", b"b"]
    assert column(rows, "@captions") == [["one"], ["two"]]
    assert source.schema().names == ["url", "year"], "beside embedded pictures a url is a column like any other"
    assert source.schema().field("year").type == pa.int16()
    assert source.modalities() == {"image", "text"}
    assert [read_image(row["@image_uri"], Storage()) for row in rows] == [b"a", b"b"]


def test_a_key_passes_through_with_its_own_type_too(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", {"id": [7, None], "caption": ["a", "b"], "group": ["x", "y"]})
    rows = read(path, key="id", item="group")
    assert column(rows, "@key") == ["7", None]
    assert column(rows, "@item") == ["x", "y"]
    assert column(rows, "id") == [7, None]


def test_reserved_names_pass_only_in_their_role(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", {"row_id": ["a"], "item_id": ["i"], "caption": ["c"]})
    with pytest.raises(ValueError, match=r"'row_id'.*rename it"):
        opened(path)
    source = opened(path, key="row_id", item="item_id")
    assert source.schema().names == []
    assert [(row["@key"], row["@item"]) for row in rows_of(source)] == [("a", "i")]


def test_a_pandas_index_is_a_column_like_any_other(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", {"caption": ["c"], "__index_level_0__": [4]})
    assert read(path)[0]["__index_level_0__"] == 4


@pytest.mark.parametrize("name", ["image", "_reason", "@key", "_rowid"])
def test_names_of_the_blocks_between_the_stages_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "c.parquet", {"jpg": [b"x"], "caption": ["c"], name: [1]})
    with pytest.raises(ValueError, match=r"(isthmus|Lance) reserves"):
        opened(path, image="jpg")


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", {"a": [1], "caption": ["c"]})
    with pytest.raises(ValueError, match=r"no column 'nope' \(--columns.image\); columns are a, caption"):
        opened(path, image="nope")


def test_a_corpus_without_pictures_and_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"among its columns a, b; name one"):
        opened(write(tmp_path / "c.parquet", {"a": [1], "b": [2]}))


def test_hugging_face_structs_fall_back_to_their_path(tmp_path: Path) -> None:
    images = [{"bytes": b"x", "path": "a.jpg"}, {"bytes": None, "path": "sub/b.jpg"}, None]
    path = write(tmp_path / "c.parquet", {"image": images, "caption": ["1", "2", "3"]})
    rows = read(path)
    assert column(rows, "@image") == [b"x", None, None]
    assert column(rows, "image_path") == ["a.jpg", "sub/b.jpg", None]
    assert rows[1]["@image_uri"] == str(tmp_path / "sub/b.jpg")
    assert read_image(rows[0]["@image_uri"], Storage()) == b"x"
    assert rows[2]["@image_uri"] is None


def test_paths_may_not_leave_the_corpus(tmp_path: Path) -> None:
    paths = ["a.jpg", "x/../b.jpg", "../secret.jpg", "/abs.jpg", "s3://b/k.jpg", "http://h/x.jpg", "", None]
    rows = read(write(tmp_path / "c.parquet", {"image_path": paths, "caption": ["c"] * len(paths)}))
    assert column(rows, "@image_uri") == [
        str(tmp_path / "a.jpg"),
        str(tmp_path / "b.jpg"),
        "../secret.jpg",
        "/abs.jpg",
        "s3://b/k.jpg",
        "http://h/x.jpg",
        None,
        None,
    ]
    assert column(rows, "@reason") == [None, None, "bad_record", None, None, None, None, None]
    assert column(rows, "image_path") == paths


def test_a_string_column_named_as_the_image_holds_paths(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "c.parquet", {"pic": ["a.jpg"], "image_path": ["kept"]}), image="pic")
    assert rows[0]["@image_uri"] == str(tmp_path / "a.jpg")
    assert (rows[0]["pic"], rows[0]["image_path"]) == ("a.jpg", "kept"), "no column of the corpus is lost"


def test_bytes_come_before_the_path_where_both_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", {"jpg": [b"x", None], "where": ["a.jpg", "b.jpg"]})
    rows = read(path, image="jpg", uri="where")
    assert column(rows, "@image") == [b"x", None]
    assert rows[1]["@image_uri"] == str(tmp_path / "b.jpg")


def test_captions_may_be_lists(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "c.parquet", {"captions": [["a", None, "b"], [], None], "image": [b"1", b"2", b"3"]}))
    assert column(rows, "@captions") == [["a", "b"], [], None]


def test_a_caption_of_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'n' is int64, not strings"):
        opened(write(tmp_path / "c.parquet", {"n": [1]}), caption="n")


def test_dictionaries_extensions_and_nested_types_become_plain(tmp_path: Path) -> None:
    words = pa.array(["a", "b"]).dictionary_encode()
    lists = pa.ListArray.from_arrays([0, 1, 2], words)
    ids = pa.array([bytes(range(16)), bytes(16)], pa.uuid())
    path = write(
        tmp_path / "c.parquet", {"caption": words, "tag": words, "tags": lists, "u": ids, "s": [{"a": [1]}, {"a": []}]}
    )
    source = opened(path, key="u")
    assert source.schema().field("tag").type == pa.string()
    assert source.schema().field("tags").type == pa.list_(pa.string())
    rows = rows_of(source)
    assert column(rows, "tags") == [["a"], ["b"]]
    assert column(rows, "@key") == [bytes(range(16)).decode(), bytes(16).decode()]
    assert column(rows, "s") == [{"a": [1]}, {"a": []}]


def test_hive_partitions_have_one_type_in_all_files(tmp_path: Path) -> None:
    for year, lang in ((2020, "01"), (2021, "x%20y"), (2021, "__HIVE_DEFAULT_PARTITION__")):
        write(tmp_path / f"year={year}" / f"lang={lang}" / "a.parquet", {"caption": [f"{year}{lang}"]})
    touch(tmp_path / "_SUCCESS")
    source = opened(tmp_path, item="lang")
    assert source.schema() == pa.schema([("year", pa.int64()), ("lang", pa.string())])
    rows = rows_of(source)
    assert {(row["year"], row["lang"], row["@item"]) for row in rows} == {
        (2020, "01", "01"),
        (2021, "x y", "x y"),
        (2021, None, None),
    }


def test_files_that_drift_are_cast_to_one_schema(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"caption": ["a"], "n": pa.array([1], pa.int32()), "t": pa.nulls(1)})
    write(tmp_path / "b.parquet", {"caption": ["b"], "n": pa.array([2], pa.int64()), "t": ["x"], "extra": [1.5]})
    source = opened(tmp_path)
    assert source.schema() == pa.schema([("n", pa.int64()), ("t", pa.string()), ("extra", pa.float64())])
    assert [(row["n"], row["t"], row["extra"]) for row in rows_of(source)] == [(1, None, None), (2, "x", 1.5)]


def test_types_that_cannot_agree_name_file_column_and_types(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"caption": ["a"], "n": ["1"]})
    write(tmp_path / "b.parquet", {"caption": ["b"], "n": [1]})
    with pytest.raises(ValueError, match=r"column 'n' is int64 in .*b\.parquet, but string in .*a\.parquet"):
        opened(tmp_path)


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["caption", "n", "n"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column 'n' occurs twice in .*a\.parquet"):
        opened(tmp_path)


def test_a_value_that_does_not_fit_the_common_type_costs_its_row_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"caption": ["a", "b", "c"], "n": [1, 2**53 + 1, 3]})
    write(tmp_path / "b.parquet", {"caption": ["d"], "n": [0.5]})
    rows = read(tmp_path)
    assert column(rows, "@reason") == [None, "bad_record", None, None]
    assert column(good(rows), "n") == [1.0, 3.0, 0.5]


def test_a_string_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    """Arrow does not check the strings of a file; the sink, much later, would fail on the whole block."""
    text = pa.array([b"fine", b"\xff\xfe", b"too"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, text.buffers())
    rows = read(write(tmp_path / "c.parquet", {"caption": broken, "n": [1, 2, 3]}))
    assert column(rows, "@reason") == [None, "bad_record", None]
    assert "UTF8" in rows[1]["@message"]
    assert column(rows, "n") == [1, None, 3]


@pytest.mark.parametrize("damage", ["cut", "empty", "magic", "thrift"])
def test_a_corrupt_footer_names_the_file_and_the_remedy(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "a.parquet", {"caption": ["a"]})
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    broken = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "magic": data[:-4] + b"abcd",
        "thrift": data[:-300] + b"\xff" * 292 + data[-8:],
    }
    touch(tmp_path / "b.parquet", bytes(broken[damage]))
    with pytest.raises(ValueError, match=r"b\.parquet is not a whole Parquet file.*take it out"):
        opened(tmp_path)


def test_a_corrupt_page_costs_the_rest_of_its_row_group_alone(tmp_path: Path) -> None:
    rng = random.Random(0)
    ids = list(range(3_000))
    path = write(
        tmp_path / "c.parquet",
        {"id": ids, "image": [rng.randbytes(50) for _ in ids], "caption": [f"c{i}" for i in ids]},
        row_group_size=1_000,
        write_page_checksum=True,
    )
    start = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[start + 100 : start + 140] = b"\xff" * 40
    path.write_bytes(data)

    rows = read(path, key="id")
    assert len(rows) == 3_000, "rows in = rows written + rows rejected"
    assert column(good(rows), "@key") == [str(i) for i in [*range(1_000), *range(2_000, 3_000)]]
    assert {row["@reason"] for row in rows[1_000:2_000]} == {"bad_record"}
    assert "row group 1" in rows[1_500]["@message"]


def test_a_store_that_fails_is_no_corrupt_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network failure must stop the job: rejecting the rows would record them as done."""
    source = opened(write(tmp_path / "c.parquet", {"caption": ["c"]}))

    def fails(*_: object, **__: object) -> None:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fails)
    with pytest.raises(ConnectionResetError):
        list(source.read(source.shards()[0]))


def test_a_file_that_changed_after_the_listing_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", {"caption": ["c"]})
    source = opened(path)
    write(path, {"caption": ["other", "more"]})
    with pytest.raises(OSError, match="changed after it was listed"):
        list(source.read(source.shards()[0]))


def test_globs_take_what_they_match(tmp_path: Path) -> None:
    for name in ("a1", "a2", "b1"):
        write(tmp_path / f"{name}.parquet", {"caption": [name]})
    assert column(read(tmp_path / "a*.parquet"), "@captions") == [["a1"], ["a2"]]


groups = st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 40 << 20)), max_size=120)


@given(groups)
def test_shards_partition_the_row_groups(sizes: list[tuple[int, int]]) -> None:
    shards = cut_shards(FileInfo(uri="/f", size=1, version="v"), sizes)
    starts = [sum(rows for rows, _ in sizes[: shard.start]) for shard in shards]
    assert [shard.first_row for shard in shards] == starts
    assert sum(shard.rows or 0 for shard in shards) == sum(rows for rows, _ in sizes)
    covered = [i for shard in shards for i in range(shard.start, shard.stop)]
    assert covered == sorted(set(covered))
    for shard in shards:
        single = shard.stop - shard.start == 1
        assert single or (shard.size_bytes <= MAX_SHARD_BYTES and (shard.rows or 0) <= MAX_SHARD_ROWS)
    if all(rows for rows, _ in sizes):
        assert len(shards) >= min(len(sizes), 16)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 200), group=st.integers(1, 60))
def test_shards_of_a_file_read_its_rows_once_in_order(tmp_path: Path, rows: int, group: int) -> None:
    path = write(tmp_path / "p.parquet", {"id": list(range(rows)), "caption": ["c"] * rows}, row_group_size=group)
    source = opened(path)
    ids: list[int] = []
    for shard in source.shards():
        tables = list(source.read(shard))
        assert tables[0]["id"][0].as_py() == shard.first_row == len(ids)
        ids += [i for table in tables for i in table["id"].to_pylist()]
    assert ids == list(range(rows))


def test_batches_are_bounded_in_bytes(tmp_path: Path) -> None:
    """A row group of large pictures in one batch would hold hundreds of MiB in each read task."""
    images = [random.Random(i).randbytes(1 << 20) for i in range(24)]
    source = opened(write(tmp_path / "c.parquet", {"image": images, "id": list(range(24))}, compression="none"))
    sizes = [table.nbytes for shard in source.shards() for table in source.read(shard)]
    assert max(sizes) < 9 << 20
    assert len(sizes) >= 3


def test_the_pickled_source_does_not_grow_with_the_files(tmp_path: Path) -> None:
    import pickle

    write(tmp_path / "0.parquet", {"caption": ["c"]})
    one = len(pickle.dumps(opened(tmp_path)))
    for i in range(1, 300):
        (tmp_path / f"{i}.parquet").write_bytes((tmp_path / "0.parquet").read_bytes())
    source = opened(tmp_path)
    assert len(source.shards()) == 300
    assert len(pickle.dumps(source)) == one, "it travels with every read task"


def test_an_empty_file_is_a_shard_of_no_rows(tmp_path: Path) -> None:
    """It may have held some, and a run must see that they are gone."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"caption": pa.array([], pa.string())}), buffer)
    touch(tmp_path / "e.parquet", buffer.getvalue())
    source = opened(tmp_path)
    assert [shard.rows for shard in source.shards()] == [0]
    assert rows_of(source) == []
