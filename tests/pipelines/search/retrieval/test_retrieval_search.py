"""Search results are checked against plain numpy; refusals, against what would otherwise go wrong silently."""

from __future__ import annotations

import io
import json
from datetime import datetime
from pathlib import Path

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from corpora import picture
from PIL import Image

from encoders.images import prepare
from encoders.registry import describe, load
from pipelines.pages.cards import Section, write_page
from pipelines.rows.contract import CAPTION, IMAGE_URI, ITEM_ID, POSITION, ROW_ID, SHARD, THUMBNAIL
from pipelines.search.retrieval.queries import Query
from pipelines.search.retrieval.search import search
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.filters import check_filter
from pipelines.tables.provenance import EncoderMismatchError, Provenance

N = 120
CAPTIONS = [f"{word} thing number {i}" for i, word in enumerate(["red", "green", "blue", "dog"] * (N // 4))]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(N):
        (folder / f"{i}.jpg").write_bytes(picture(i))
    return [folder / f"{i}.jpg" for i in range(N)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, images: list[Path]) -> TableRef:
    encoder, description = load("fake"), describe("fake")
    assert description.image_transform is not None
    pixels = [prepare(path.read_bytes(), description.image_transform) for path in images]
    image = [None if i % 10 == 9 else v for i, v in enumerate(encoder.encode_images(pixels))]
    rows = pa.table(
        {
            ROW_ID: [f"r'{i}" for i in range(N)],
            ITEM_ID: [f"item{i // 3}" for i in range(N)],
            CAPTION: CAPTIONS,
            IMAGE_URI: [str(path) for path in images],
            "age": list(range(N)),
            "tag": ["it's", "a;b", "plain", None] * (N // 4),
            "image_vector": pa.array(image, pa.list_(pa.float32(), 64)),
            "text_vector": pa.array(
                list(encoder.encode_texts(CAPTIONS).vectors.astype(np.float16)), pa.list_(pa.float16(), 64)
            ),
            SHARD: ["s"] * N,
            POSITION: list(range(N)),
        }
    )
    ref = TableRef.parse(str(tmp_path_factory.mktemp("db") / "db" / "t"))
    provenance = Provenance(encoder=description.card, modalities=("image", "text"))
    lance.write_dataset(rows.replace_schema_metadata(provenance.to_metadata()), ref.uri)
    return ref


def vectors(table: TableRef, column: str) -> tuple[list[str], np.ndarray]:
    rows = lance.dataset(table.uri).to_table(columns=[ROW_ID, column], filter=f"{column} IS NOT NULL")
    return rows[ROW_ID].to_pylist(), np.array(rows[column].to_pylist(), np.float64)


def expected(table: TableRef, column: str, query: np.ndarray, k: int) -> list[tuple[str, float]]:
    ids, found = vectors(table, column)
    scores = found @ query / np.linalg.norm(found, axis=1)
    order = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))
    return [(ids[i], scores[i]) for i in order[:k]]


def check(hits: list[dict], want: list[tuple[str, float]]) -> None:
    assert [hit["row_id"] for hit in hits] == [row_id for row_id, _ in want]
    np.testing.assert_allclose([hit["score"] for hit in hits], [score for _, score in want], atol=2e-3)


@pytest.mark.parametrize("column", ["image_vector", "text_vector"])
def test_words_find_the_nearest_vectors(column: str, table: TableRef) -> None:
    query = load("fake").encode_texts(["a red dog"]).vectors[0]
    hits = search(table, Query(words="a red dog", k=12, vector_column=column))
    check(hits.to_list(), expected(table, column, query, 12))


def test_words_search_pictures_where_the_two_share_a_space(table: TableRef) -> None:
    assert search(table, Query(words="a red dog")).column == "image_vector"


def test_a_picture_finds_itself(table: TableRef, images: list[Path]) -> None:
    hits = search(table, Query(image=images[5].read_bytes(), k=3)).to_list()
    assert hits[0]["row_id"] == "r'5"
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-3)


def test_a_row_finds_others_and_never_itself(table: TableRef) -> None:
    hits = search(table, Query(like="r'7", k=N)).to_list()
    assert "r'7" not in [hit["row_id"] for hit in hits]
    distinct = search(table, Query(like="r'7", k=N, distinct=True)).to_list()
    items = [hit["item_id"] for hit in distinct]
    assert len(items) == len(set(items)) == N // 3 - 1
    assert "item2" not in items


def test_a_filter_applies_before_the_search(table: TableRef) -> None:
    hits = search(table, Query(words="dog", k=5, where="age < 8 AND tag = 'a;b'")).to_list()
    assert sorted(hit["age"] for hit in hits) == [1, 5], "never fewer than there are, never another"


def test_quotes_in_ids_are_no_sql(table: TableRef) -> None:
    with pytest.raises(ValueError, match="no row with row_id"):
        search(table, Query(like="x' OR '1'='1"))


GOOD = [
    "age > 5",
    "(age > 5) OR (age < 2)",
    "tag = ')'",
    "`age` > 5",
    "tag = 'a;b'",
    "tag = 'it''s'",
    "tag IS NULL",
    "caption LIKE '%dog%' AND age BETWEEN 1 AND 9",
]
BAD = {
    "tag = 'it's'": "a quote is not closed",
    "age > 5; DROP TABLE t": "a semicolon",
    "age > 5 -- and more": "a comment",
    "age /* */ > 5": "a comment",
    "nosuch = 1": "nosuch",
    "age": "boolean",
    "age IN (SELECT 1)": "not supported",
    "sleep(3)": "sleep",
    "age > 'x'": "x",
    "": "expression",
    "age > 5 limit 3": "limit",
    "age > 5 order by age": "order by",
    "age > 5 and more words": "words",
    "age > 190) OR (1=1": "parentheses",
    "(age > 5": "parentheses",
    "\"item_id\" = 'item3'": "`item_id`",
    "  ": "expression",
}


@pytest.mark.parametrize("where", GOOD)
def test_filters_that_are_filters_pass(where: str, table: TableRef) -> None:
    assert check_filter(where, lance.dataset(table.uri)) == where


@pytest.mark.parametrize("where", BAD)
def test_filters_that_are_none_are_refused_by_name(where: str, table: TableRef) -> None:
    before = lance.dataset(table.uri).version
    with pytest.raises(ValueError, match="columns are row_id") as caught:
        search(table, Query(words="dog", where=where))
    assert BAD[where].lower() in str(caught.value).lower()
    assert ".rs:" not in str(caught.value), "paths of Lance's source help nobody"
    assert lance.dataset(table.uri).version == before


def test_what_cannot_be_asked_is_refused(table: TableRef) -> None:
    with pytest.raises(ValueError, match="no column 'nope'"):
        search(table, Query(words="a", columns=("nope",)))
    with pytest.raises(ValueError, match="no vector column 'nope'"):
        search(table, Query(words="a", vector_column="nope"))
    with pytest.raises(ValueError, match="no full-text index; run `isthmus index`"):
        search(table, Query(words="a", full_text=True))
    with pytest.raises(ValueError, match="at least 1"):
        search(table, Query(words="a", k=0))


def test_another_encoder_is_refused_by_both_names(table: TableRef) -> None:
    with pytest.raises(EncoderMismatchError, match=r"made by 'fake'.*not by 'fake-32'"):
        search(table, Query(words="a"), encoder="fake-32")


def test_unrelated_towers_are_not_compared(tmp_path: Path) -> None:
    """Words against the picture vectors of another model would give scores without meaning."""
    card = describe("fake+fake-32").card
    ref = TableRef.parse(str(tmp_path / "db" / "t"))
    rows = pa.table(
        {
            ROW_ID: ["a"],
            ITEM_ID: ["a"],
            CAPTION: ["dog"],
            IMAGE_URI: [None],
            "image_vector": pa.array([np.ones(64)], pa.list_(pa.float32(), 64)),
            "text_vector": pa.array([np.ones(32)], pa.list_(pa.float32(), 32)),
        }
    )
    provenance = Provenance(encoder=card, modalities=("image", "text"))
    lance.write_dataset(rows.replace_schema_metadata(provenance.to_metadata()), ref.uri)
    assert search(ref, Query(words="dog")).column == "text_vector"
    with pytest.raises(ValueError, match=r"words cannot be compared with image_vector.*search text_vector"):
        search(ref, Query(words="dog", vector_column="image_vector"))


def test_a_column_of_the_corpus_called_score_gives_way(tmp_path: Path) -> None:
    """Web corpora have score columns of their own, and values that JSON lacks."""
    rows = pa.table(
        {
            ROW_ID: ["a", "b"],
            ITEM_ID: ["a", "b"],
            CAPTION: ["dog", "cat"],
            IMAGE_URI: pa.array([None, None], pa.string()),
            "score": [0.25, 0.75],
            "more": [{"at": datetime(2024, 1, 2), "raw": b"x", "nan": float("nan")}] * 2,
            "image_vector": pa.array(list(np.eye(64)[:2]), pa.list_(pa.float32(), 64)),
        }
    )
    ref = TableRef.parse(str(tmp_path / "db" / "t"))
    provenance = Provenance(encoder=describe("fake").card, modalities=("image",))
    lance.write_dataset(rows.replace_schema_metadata(provenance.to_metadata()), ref.uri)
    (hit,) = search(ref, Query(like="a", where="score > 0.5")).to_list()
    assert (hit["row_id"], hit["score"]) == ("b", pytest.approx(0.0, abs=1e-6))
    assert json.loads(json.dumps(hit, allow_nan=False))["more"] == {
        "at": "2024-01-02T00:00:00",
        "raw": None,
        "nan": None,
    }


def test_plain_lancedb_opens_the_same_table(table: TableRef) -> None:
    opened = lancedb.connect(table.database).open_table(table.name)
    assert opened.count_rows() == N
    assert len(opened.search().where("age < 5").limit(10).to_list()) == 5


def test_the_page_is_one_file_with_pictures_and_no_script(table: TableRef, tmp_path: Path) -> None:
    hits = search(table, Query(words="red", k=6))
    path = write_page(tmp_path / "p.html", "<script>alert(1)</script>", [Section(title="“red”", hits=hits)], Storage())
    page = path.read_text()
    assert page.count('src="data:image/jpeg;base64,') == 6
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("https://openmoji.org", "")


def test_a_picture_that_is_gone_leaves_a_card_with_the_reason(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (1, 200, 3)).save(buffer, "JPEG")
    rows = pa.table(
        {
            ROW_ID: ["gone", "kept", "words"],
            ITEM_ID: ["a", "b", "c"],
            CAPTION: ["<b>bold</b>", "kept", None],
            IMAGE_URI: [str(tmp_path / "gone.jpg"), str(tmp_path / "gone.jpg"), None],
            THUMBNAIL: pa.array([None, buffer.getvalue(), None], pa.binary()),
            "image_vector": pa.array([np.eye(64)[i] for i in range(3)], pa.list_(pa.float32(), 64)),
        }
    )
    ref = TableRef.parse(str(tmp_path / "db" / "t"))
    provenance = Provenance(encoder=describe("fake").card, modalities=("image",))
    lance.write_dataset(rows.replace_schema_metadata(provenance.to_metadata()), ref.uri)
    hits = search(ref, Query(words="red", k=3))
    page = write_page(tmp_path / "p.html", "t", [Section(title="q", hits=hits)], Storage()).read_text()
    assert "picture not readable: FileNotFoundError" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert page.count('src="data:image/jpeg') == 1
    assert page.count("no picture") == 1
