"""The main job on real Ray and real Lance: every input row comes out exactly once, and can be found."""

from __future__ import annotations

from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import Pair, pairs, picture, write_folder, write_parquet, write_webdataset
from engines import on_engine

from jobs.embed import EmbedConfig, run
from jobs.info import InfoConfig
from jobs.info import run as info
from jobs.rejects import RejectsConfig
from jobs.rejects import run as rejects

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module")
def items() -> list[Pair]:
    return pairs(300)


def embed(corpus: object, table: Path, **options: object):  # type: ignore[no-untyped-def]
    given = {"corpus": str(corpus), "table": str(table), "encoder": "fake", **on_engine(), **options}
    return run(EmbedConfig(**given))  # type: ignore[arg-type]


def rows_of(table: Path) -> pa.Table:
    return lancedb.connect(str(table.parent)).open_table(table.name).to_arrow().sort_by("row_id")


def vectors(rows: pa.Table, column: str) -> np.ndarray:
    return np.array(rows[column].to_pylist(), np.float64)


def test_a_parquet_corpus_becomes_a_table_that_mirrors_it(items: list[Pair], tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "c.parquet", items)
    report = embed(corpus, tmp_path / "db" / "t", columns={"key": "id"})

    rows = rows_of(tmp_path / "db" / "t")
    assert (report.rows_in, report.written, report.rejected, report.skipped) == (300, 300, {}, 0)
    assert rows["row_id"].to_pylist() == [p.key for p in items]
    assert rows["caption"].to_pylist() == [p.caption for p in items]
    assert rows["year"].to_pylist() == [p.year for p in items]
    assert rows.schema.field("year").type == pa.int32(), "metadata passes through with its type"
    for column in ("image_vector", "text_vector"):
        np.testing.assert_allclose(np.linalg.norm(vectors(rows, column), axis=1), 1.0, atol=1e-3)
    assert info(InfoConfig(table=str(tmp_path / "db" / "t"))).encoder["name"] == "fake"


def test_the_four_formats_give_the_same_rows_and_vectors(items: list[Pair], tmp_path: Path) -> None:
    sources = {
        "parquet": (write_parquet(tmp_path / "c.parquet", items), {"key": "id"}),
        "tars": (write_webdataset(tmp_path / "tars", items), {"key": "key"}),
        "folder": (write_folder(tmp_path / "folder", items), {"key": "stem"}),
    }
    tables = {}
    for name, (corpus, columns) in sources.items():
        embed(corpus, tmp_path / "db" / name, columns=columns)
        tables[name] = rows_of(tmp_path / "db" / name)
    for name, rows in tables.items():
        assert rows["row_id"].to_pylist() == [p.key for p in items], name
        for column in ("image_vector", "text_vector"):
            cosines = (vectors(rows, column) * vectors(tables["parquet"], column)).sum(axis=1)
            assert cosines.min() >= 0.99999, (name, column)


def test_a_second_run_does_nothing_and_a_grown_corpus_only_what_is_new(items: list[Pair], tmp_path: Path) -> None:
    table = tmp_path / "db" / "t"
    write_parquet(tmp_path / "c" / "a.parquet", items[:200])
    first = embed(tmp_path / "c", table, columns={"key": "id"})
    again = embed(tmp_path / "c", table, columns={"key": "id"})
    assert (again.rows_in, again.skipped, again.commits, again.version) == (0, 200, 0, again.version)

    write_parquet(tmp_path / "c" / "b.parquet", items[200:])
    grown = embed(tmp_path / "c", table, columns={"key": "id"})
    assert (grown.written, grown.skipped) == (100, 200)
    assert rows_of(table)["row_id"].to_pylist() == [p.key for p in items]
    assert first.written == 200


def test_a_picture_with_several_captions_is_several_rows_of_one_item(tmp_path: Path) -> None:
    captions = [["a cat", "一只猫"], ["a dog"], ["a boat", "a ship", "船"]]
    table = pa.table({"id": [1, 2, 3], "image": [picture(i) for i in range(3)], "captions": captions})
    pq.write_table(table, tmp_path / "c.parquet")
    embed(tmp_path / "c.parquet", tmp_path / "db" / "t", columns={"key": "id"})

    rows = rows_of(tmp_path / "db" / "t")
    assert rows["row_id"].to_pylist() == ["1", "1#1", "2", "3", "3#1", "3#2"]
    assert len(set(rows["item_id"].to_pylist())) == 3
    assert rows["id"].to_pylist() == [1, 1, 2, 3, 3, 3]
    image = vectors(rows, "image_vector")
    np.testing.assert_array_equal(image[0], image[1])
    np.testing.assert_array_equal(image[3], image[5])


def test_small_commits_and_blocks_change_nothing_in_the_table(items: list[Pair], tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "c.parquet", items)
    embed(corpus, tmp_path / "db" / "one")
    report = embed(corpus, tmp_path / "db" / "many", block_rows=7, commit_rows=40, fragment_rows=20)

    one, many = (rows_of(tmp_path / "db" / name) for name in ("one", "many"))
    assert report.commits > 3
    assert one.equals(many)


def test_a_paired_corpus_rejects_halves_and_an_any_corpus_keeps_them(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for name in ("both", "lonely"):
        (folder / f"{name}.jpg").write_bytes(picture(1))
    (folder / "both.txt").write_text("a cat")
    (folder / "words.txt").write_text("only words")

    report = embed(folder, tmp_path / "db" / "paired", columns={"key": "stem"})
    assert (report.written, report.rejected) == (1, {"missing_caption": 1, "missing_image": 1})
    listed = rejects(RejectsConfig(table=str(tmp_path / "db" / "paired")))
    assert {row["row_id"]: row["reason"] for row in listed.rows} == {
        "lonely": "missing_caption",
        "words": "missing_image",
    }

    report = embed(folder, tmp_path / "db" / "any", columns={"key": "stem"}, embed="any")
    rows = rows_of(tmp_path / "db" / "any")
    assert (report.written, report.rejected) == (3, {})
    assert [v is None for v in rows["image_vector"].to_pylist()] == [False, False, True]
    assert [v is None for v in rows["text_vector"].to_pylist()] == [False, True, False]


def test_a_table_of_another_encoder_is_refused_and_left_as_it_was(items: list[Pair], tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "c.parquet", items[:20])
    table = tmp_path / "db" / "t"
    before = embed(corpus, table).version
    other = EmbedConfig(corpus=str(corpus), table=str(table), encoder="fake-32")
    with pytest.raises(ValueError, match=r"made by 'fake'.*not by 'fake-32'"):
        run(other)
    assert lancedb.connect(str(table.parent)).open_table("t").version == before


def test_thumbnails_are_kept_when_asked_for(items: list[Pair], tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "c.parquet", items[:10])
    embed(corpus, tmp_path / "db" / "t", thumbnails=32)
    assert all(data[:2] == b"\xff\xd8" for data in rows_of(tmp_path / "db" / "t")["thumbnail"].to_pylist())


def test_half_precision_vectors_are_found_too(items: list[Pair], tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "c.parquet", items[:50])
    embed(corpus, tmp_path / "db" / "t", vector_dtype="float16")
    table = lancedb.connect(str(tmp_path / "db")).open_table("t")
    row = table.to_arrow().slice(7, 1)
    query = np.array(row["image_vector"][0].as_py(), np.float32)
    found = table.search(query, vector_column_name="image_vector").distance_type("cosine").limit(1).to_list()
    assert found[0]["row_id"] == row["row_id"][0].as_py()
