"""Planted sets in which the right answer needs a composed query, a fused ranking, or diversity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from encoders.registry import describe, load
from pipelines.rows.contract import CAPTION, IMAGE_URI, ITEM_ID, ROW_ID
from pipelines.search.indexing.build import build_text_index
from pipelines.search.retrieval.fusing import fuse_ranks
from pipelines.search.retrieval.queries import Query, Term
from pipelines.search.retrieval.search import search
from pipelines.store.storage import TableRef
from pipelines.tables.provenance import Provenance

SHAPES = [f"shape{i}" for i in range(12)]
COLOURS = ["red", "green", "blue", "black", "white", "pink"]
EACH = 4


def words(text: str) -> np.ndarray:
    return np.asarray(load("fake").encode_texts([text]).vectors[0], np.float64)


def named(shape: str, colour: str, n: int = 0) -> str:
    return f"{colour}-{shape}-{n}"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TableRef:
    """Pictures with vectors that depend mostly on shape, somewhat on colour, and lie far from all words."""
    rng = np.random.default_rng(0)
    gap = rng.normal(size=64)
    rows = []
    for i, shape in enumerate(SHAPES):
        axis = np.random.default_rng(100 + i).normal(size=64)
        for colour in COLOURS:
            for n in range(EACH):
                vector = axis / np.linalg.norm(axis) + 0.35 * words(colour) + 0.3 * gap / np.linalg.norm(gap)
                vector += rng.normal(size=64) * 0.01
                rows.append((named(shape, colour, n), vector / np.linalg.norm(vector), f"a {shape} of some colour"))
    return write(tmp_path_factory.mktemp("composed") / "db" / "t", rows)


def write(path: Path, rows: list[tuple[str, Any, str]]) -> TableRef:
    ids, vectors, captions = zip(*rows, strict=True)
    texts = load("fake").encode_texts(list(captions)).vectors
    data = pa.table(
        {
            ROW_ID: list(ids),
            ITEM_ID: [row_id.rsplit("-", 1)[0] for row_id in ids],
            CAPTION: list(captions),
            IMAGE_URI: pa.nulls(len(ids), pa.string()),
            "image_vector": pa.array([None if v is None else v.tolist() for v in vectors], pa.list_(pa.float32(), 64)),
            "text_vector": pa.array(texts.tolist(), pa.list_(pa.float32(), 64)),
        }
    )
    ref = TableRef.parse(str(path))
    provenance = Provenance(encoder=describe("fake").card, modalities=("image", "text"))
    lance.write_dataset(data.replace_schema_metadata(provenance.to_metadata()), ref.uri)
    build_text_index(ref)
    return ref


def ids(table: TableRef, query: Query) -> list[str]:
    return list(search(table, query).rows[ROW_ID].to_pylist())


def first_share(table: TableRef, make: Any) -> float:
    """The share of (shape, from colour, to colour) queries whose first answer is that shape in the other colour."""
    cases = [(s, a, b) for s in SHAPES for a in COLOURS for b in COLOURS if a != b]
    right = 0
    for shape, old, new in cases:
        (found,) = ids(table, make(named(shape, old), old, new))
        right += found.startswith(f"{new}-{shape}-")
    return right / len(cases)


@pytest.mark.slow
def test_this_but_red_needs_the_row_and_the_words(table: TableRef) -> None:
    """360 queries: a row, but in another colour."""
    both = first_share(
        table, lambda row, old, new: Query(like=row, words=new, terms=(Term(words=old, weight=-0.5),), k=1)
    )
    row_alone = first_share(table, lambda row, old, new: Query(like=row, k=1))
    words_alone = first_share(table, lambda row, old, new: Query(words=new, vector_column="image_vector", k=1))
    assert both > 0.95
    assert row_alone == 0.0
    assert words_alone < 0.2


def test_the_rows_of_a_query_are_no_answers_to_it(table: TableRef) -> None:
    row, other = named(SHAPES[0], "red"), named(SHAPES[0], "green")
    found = ids(table, Query(like=row, terms=(Term(like=other),), k=50))
    assert not {row, other} & set(found)
    items = search(table, Query(like=row, terms=(Term(like=other),), k=50, distinct=True)).rows[ITEM_ID].to_pylist()
    assert not {row.rsplit("-", 1)[0], other.rsplit("-", 1)[0]} & set(items)
    assert len(set(items)) == len(items) == 50


def test_several_rows_are_averaged(table: TableRef) -> None:
    """Two shapes in one colour: what both share, other shapes of that colour, comes before everything else."""
    rows = tuple(Term(like=named(shape, "pink")) for shape in SHAPES[:6])
    unlike = tuple(Term(like=named(shape, colour), weight=-0.2) for shape in SHAPES[:6] for colour in COLOURS[:5])
    others = " AND ".join(f"row_id NOT LIKE '%-{shape}-%'" for shape in SHAPES[:6])
    found = ids(table, Query(terms=(*rows, *unlike), k=10, where=others))
    assert all(row.startswith("pink-") for row in found), found


def test_a_raw_vector_is_searched_by_as_it_is(table: TableRef) -> None:
    data = lance.dataset(table.uri).to_table(columns=[ROW_ID, "image_vector"])
    vector = tuple(data["image_vector"][17].as_py())
    assert ids(table, Query(vector=vector, k=1)) == [data[ROW_ID][17].as_py()]
    with pytest.raises(ValueError, match="vector has 3 numbers; image_vector has 64"):
        search(table, Query(vector=(1.0, 2.0, 3.0)))
    for bad in ((0.0,) * 64, (float("nan"),) * 64):
        with pytest.raises(ValueError, match="finite numbers that are not all 0"):
            search(table, Query(vector=bad))


@pytest.mark.parametrize("options", [{}, {"diversity": 0.5}, {"distinct": True}, {"distinct": True, "diversity": 0.3}])
def test_pages_follow_each_other(table: TableRef, options: dict[str, Any]) -> None:
    whole = ids(table, Query(words="red", k=30, **options))
    pages = [row for skip in (0, 10, 20) for row in ids(table, Query(words="red", k=10, skip=skip, **options))]
    assert pages == whole
    assert len(set(whole)) == 30
    assert ids(table, Query(words="red", k=10, skip=10_000, **options)) == []


def test_variety_shows_other_shapes(table: TableRef) -> None:
    query = {"like": named(SHAPES[3], "red"), "k": 10}
    plain = {row.split("-")[1] for row in ids(table, Query(**query))}  # type: ignore[arg-type]
    varied = {row.split("-")[1] for row in ids(table, Query(**query, diversity=0.7))}  # type: ignore[arg-type]
    assert plain == {SHAPES[3]}
    assert len(varied) >= 5


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> TableRef:
    """Each of 40 things has a row that only its vector identifies and one that only its caption identifies."""
    rng = np.random.default_rng(1)
    rows: list[tuple[str, Any, str]] = []
    for i in range(40):
        near = words(f"word{i}") + rng.normal(size=64) * 0.02
        far = rng.normal(size=64)
        rows.append((f"seen-{i}", near / np.linalg.norm(near), "nothing said"))
        rows.append((f"said-{i}", far / np.linalg.norm(far), f"the word{i} is 红色 here"))
    rows.append(("textless-0", None, "word0 without a picture"))
    return write(tmp_path_factory.mktemp("mixed") / "db" / "t", rows)


@pytest.mark.parametrize("fusion", ["rank", "score"])
def test_hybrid_finds_what_either_finds(mixed: TableRef, fusion: Any) -> None:
    found = dict.fromkeys(("hybrid", "vectors", "captions"), 0)
    for i in range(1, 40):
        query = Query(words=f"word{i}", k=2, vector_column="image_vector", fusion=fusion)
        wanted = {f"seen-{i}", f"said-{i}"}
        found["hybrid"] += set(ids(mixed, replace(query, hybrid=True))) == wanted
        found["vectors"] += set(ids(mixed, query)) == wanted
        found["captions"] += set(ids(mixed, replace(query, full_text=True))) == wanted
    assert found["hybrid"] == 39
    assert max(found["vectors"], found["captions"]) <= 3, "by chance at most"


def test_hybrid_says_what_it_searched_and_takes_filters_variety_and_chinese(mixed: TableRef) -> None:
    hits = search(mixed, Query(words="红色", hybrid=True, k=50, where="row_id LIKE 's%'", diversity=0.2, distinct=True))
    assert hits.column == "image_vector + caption"
    assert not any(row.startswith("textless") for row in hits.rows[ROW_ID].to_pylist())
    assert "image_vector" not in hits.rows.column_names
    assert "textless-0" in ids(mixed, Query(words="word0", hybrid=True, k=5)), "a row without a vector has a caption"
    assert ids(mixed, Query(words="word0", full_text=True, diversity=0.4, k=2))[0] in {"said-0", "textless-0"}


def test_two_vector_columns_are_fused(mixed: TableRef) -> None:
    query = Query(words="the word7 is 红色 here", k=100)
    pictures, captions = (ids(mixed, replace(query, vector_column=c)) for c in ("image_vector", "text_vector"))
    hits = search(mixed, replace(query, vector_column="image_vector, text_vector"))
    assert hits.column == "image_vector + text_vector"
    fused = fuse_ranks([pictures, captions])
    assert hits.rows[ROW_ID].to_pylist() == sorted(fused, key=lambda row: (-fused[row], row))


@pytest.mark.parametrize("fusion", ["rank", "score"])
def test_a_ranking_that_weighs_more_decides(mixed: TableRef, fusion: Any) -> None:
    query = Query(words="word7", k=1, vector_column="image_vector", hybrid=True, fusion=fusion)
    assert ids(mixed, replace(query, fusion_weights=(9, 1))) == ["seen-7"]
    assert ids(mixed, replace(query, fusion_weights=(1, 9))) == ["said-7"]


REFUSED = {
    "asks for nothing": {},
    "asks for only what to be unlike": {"terms": (Term(words="a", weight=-1.0),)},
    "weight 0.0 of words": {"words": "a", "terms": (Term(words="b", weight=0.0),)},
    "a term is one of words, image, like, vector; got words and like": {"terms": (Term(words="a", like="b"),)},
    "full text takes words alone": {"words": "a", "like": "b", "full_text": True},
    "hybrid needs words": {"like": "seen-1", "hybrid": True},
    "diversity 1.5": {"words": "a", "diversity": 1.5},
    "skip -1": {"words": "a", "skip": -1},
    r"fusion_weights \[1, 0\]: give numbers above 0": {"words": "a", "hybrid": True, "fusion_weights": (1, 0)},
    r"fusion_weights \[1, 2\]: 1 ranking\(s\) to weigh": {"words": "a", "fusion_weights": (1, 2)},
    r"fusion_weights \[1\]: 2 ranking": {"words": "a", "hybrid": True, "fusion_weights": (1,)},
    "no row with row_id 'nope'": {"words": "a", "terms": (Term(like="nope", weight=-1.0),)},
    "has no image_vector": {"like": "textless-0"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_query_that_makes_no_sense_is_refused(message: str, mixed: TableRef) -> None:
    with pytest.raises(ValueError, match=message):
        search(mixed, Query(**REFUSED[message]))
