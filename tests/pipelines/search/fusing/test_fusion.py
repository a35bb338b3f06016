"""Early fusion: rows that need picture and words are found in the fused column, which always matches its recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from commands import isthmus
from corpora import picture
from fusion_tools import assert_fused, naive, unit
from hypothesis import given
from hypothesis import strategies as st
from mining_tools import card, write_table

from encoders.registry import describe, load
from pipelines.curate.exchange.exporting import export_table
from pipelines.curate.exchange.importing import import_folder
from pipelines.rows.contract import FUSED_VECTOR, IMAGE_VECTOR, ROW_ID, TEXT_VECTOR
from pipelines.search.fusing.column import fuse_table
from pipelines.search.retrieval.queries import Query
from pipelines.search.retrieval.search import search
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.fusion_recipe import FusionRecipe
from pipelines.tables.lease import Lease, LeaseHeldError
from pipelines.tables.opening import open_dataset
from pipelines.tables.provenance import EncoderMismatchError, Provenance
from pipelines.vectors.fused import fuse, levels, spread

DIM = 64
SHAPES = [f"shape{i}" for i in range(12)]
COLOURS = [f"colour{i}" for i in range(8)]


def recipe(weight: float = 0.5, image_spread: float = 1.0, text_spread: float = 1.0) -> FusionRecipe:
    return FusionRecipe(
        image_weight=weight,
        image_spread=image_spread,
        text_spread=text_spread,
        image_fingerprint="i",
        text_fingerprint="t",
        space="s",
    )


@given(
    n=st.integers(1, 20),
    seed=st.integers(0, 10_000),
    weight=st.floats(0.05, 0.95),
    image_spread=st.floats(0.05, 1),
    text_spread=st.floats(0.05, 1),
)
def test_fused_vectors_are_those_of_the_definition(
    n: int, seed: int, weight: float, image_spread: float, text_spread: float
) -> None:
    rng = np.random.default_rng(seed)
    images, texts = unit(rng.normal(size=(n, 6))), unit(rng.normal(size=(n, 6)))
    has_image, has_text = rng.random(n) < 0.8, rng.random(n) < 0.8
    images[~has_image], texts[~has_text] = 0.0, 0.0
    made = recipe(weight, image_spread, text_spread)
    found = fuse(images, texts, made)
    for i in range(n):
        wanted = naive(images[i] if has_image[i] else None, texts[i] if has_text[i] else None, made)
        np.testing.assert_allclose(found[i], np.zeros(6) if wanted is None else wanted, atol=1e-5)
    swapped = fuse(texts, images, recipe(1 - weight, text_spread, image_spread))
    np.testing.assert_allclose(found, swapped, atol=1e-5, err_msg="neither kind is the first")


@given(seed=st.integers(0, 10_000))
def test_levelled_parts_move_equally_over_a_table(seed: int) -> None:
    """Cones of any width and position: after levelling, both kinds spread equally around their means."""
    rng = np.random.default_rng(seed)
    images = unit(rng.normal(size=(200, 8)) + rng.uniform(0, 4) * rng.normal(size=8))
    texts = unit(rng.normal(size=(150, 8)) + rng.uniform(0, 4) * rng.normal(size=8))
    by_image, by_text = levels(images, texts)
    assert spread(images / by_image) == pytest.approx(spread(texts / by_text))
    assert spread(images) == pytest.approx(float(np.sqrt(images.astype(np.float64).var(axis=0).sum())))


def test_kinds_that_all_say_the_same_are_not_levelled_and_opposites_do_not_vanish() -> None:
    same = np.tile(np.eye(4)[0], (5, 1))
    assert levels(same, np.eye(4)) == levels(np.eye(4), np.zeros((0, 4))) == (1.0, 1.0)
    one = np.eye(4, dtype=np.float32)[:1]
    np.testing.assert_array_equal(fuse(one, -one, recipe()), one)
    np.testing.assert_array_equal(fuse(0 * one, 0 * one, recipe()), 0 * one)


def words(text: str) -> np.ndarray:
    return np.asarray(load("fake").encode_texts([text]).vectors[0], np.float64)


def planted(path: Path, *, copies: int = 1, cones: tuple[float, float] = (1.5, 0.4), noise: float = 0.01) -> TableRef:
    """Pictures that show only a shape, captions that say only a colour, each kind in a cone of its own."""
    rng = np.random.default_rng(0)
    means = unit(rng.normal(size=(2, DIM))) * np.array(cones)[:, None]
    images, texts = [], []
    for _ in range(copies):
        for shape in SHAPES:
            for colour in COLOURS:
                images.append(unit(words(shape) + means[0] + rng.normal(size=DIM) * noise))
                texts.append(unit(words(colour) + means[1] + rng.normal(size=DIM) * noise))
    names = [f"{shape} {colour}" for shape in SHAPES for colour in COLOURS] * copies
    encoder = describe("fake").card
    return write_table(path, images, texts, items=names, encoder=encoder, fragments=3)


def share_found(table: TableRef, column: str) -> float:
    """The share of (shape, colour) queries whose first answer shows the shape and says the colour."""
    names = [f"{shape} {colour}" for shape in SHAPES for colour in COLOURS]
    found = (search(table, Query(words=name, k=1, vector_column=column)).to_list()[0]["item_id"] for name in names)
    return float(np.mean([got == name for got, name in zip(found, names, strict=True)]))


def test_what_needs_both_is_found_in_the_fused_column_alone(tmp_path: Path) -> None:
    table = planted(tmp_path / "db" / "t")
    done = fuse_table(table)
    assert (done.outcome, done.written, done.fused, done.rows) == ("made", 96, 96, 96)
    assert (done.image_only, done.text_only) == (0, 0)
    assert done.recipe.image_spread < done.recipe.text_spread, "the pictures' cone is the narrower one"
    assert_fused(table)
    found = {column: share_found(table, column) for column in (FUSED_VECTOR, IMAGE_VECTOR, TEXT_VECTOR)}
    assert found[FUSED_VECTOR] > 0.95
    assert max(found[IMAGE_VECTOR], found[TEXT_VECTOR]) < 0.25, found


def test_without_levelling_the_narrow_cone_is_not_heard(tmp_path: Path) -> None:
    table = planted(tmp_path / "db" / "t", cones=(6.0, 0.4), noise=0.05)
    rows = open_dataset(table).to_table(columns=["item_id", IMAGE_VECTOR, TEXT_VECTOR]).to_pylist()
    images, texts = (np.array([row[n] for row in rows], np.float32) for n in (IMAGE_VECTOR, TEXT_VECTOR))
    names = [row["item_id"] for row in rows]
    queries = np.array([words(name) for name in names])

    def right(made: FusionRecipe) -> float:
        best = np.argmax(queries @ fuse(images, texts, made).T, axis=1)
        return float(np.mean([names[i] == name for i, name in zip(best, names, strict=True)]))

    assert right(recipe(0.5, *levels(images, texts))) > right(recipe(0.5)) + 0.1


def test_rows_pictures_and_vectors_ask_it_too_and_its_own_column_is_hidden(tmp_path: Path) -> None:
    table = planted(tmp_path / "db" / "t", copies=2)
    fuse_table(table)
    like = search(table, Query(like="r5", k=1, vector_column=FUSED_VECTOR))
    assert like.rows[ROW_ID].to_pylist() == ["r101"], "the same shape and colour once more"
    assert FUSED_VECTOR not in like.rows.column_names
    asked = search(table, Query(image=picture(1), words="colour3", k=5, vector_column=FUSED_VECTOR, diversity=0.2))
    assert asked.column == FUSED_VECTOR
    assert search(table, Query(words="shape1", k=3)).column == IMAGE_VECTOR, "what was searched without it still is"
    both = search(table, Query(words="shape1", k=3, vector_column=f"{FUSED_VECTOR},{TEXT_VECTOR}"))
    assert both.column == f"{FUSED_VECTOR} + {TEXT_VECTOR}"
    with pytest.raises(EncoderMismatchError, match="was made by 'fake'"):
        search(table, Query(words="shape1", vector_column=FUSED_VECTOR), encoder="fake-32")


def test_rows_that_lack_a_kind_take_the_other_and_half_precision_stays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [None if i % 5 == 0 else unit(rng.normal(size=16)) for i in range(40)]
    texts = [None if i % 4 == 0 else unit(rng.normal(size=16)) for i in range(40)]
    table = write_table(tmp_path / "db" / "t", images, texts, items=["i"] * 40)
    dataset = open_dataset(table)
    kind = pa.list_(pa.float16(), 16)
    fields = [f.with_type(kind) if f.name in (IMAGE_VECTOR, TEXT_VECTOR) else f for f in dataset.schema]
    halves = dataset.to_table().cast(pa.schema(fields, metadata=dataset.schema.metadata))
    lance.write_dataset(halves, table.uri, mode="overwrite")
    open_dataset(table).delete("row_id IN ('r1', 'r20', 'r33')")
    done = fuse_table(table)
    assert (done.image_only, done.text_only, done.fused, done.rows) == (8, 6, 36, 37)
    assert open_dataset(table).schema.field(FUSED_VECTOR).type == kind
    assert_fused(table)
    assert fuse_table(table).outcome == "complete", "rows without either vector lack nothing"


@pytest.mark.slow
def test_rows_of_another_tool_have_none_until_it_runs_again_and_the_index_takes_them_in(tmp_path: Path) -> None:
    table = planted(tmp_path / "db" / "t", copies=110)
    fuse_table(table)
    done = isthmus("index", table, "--json")
    assert done.returncode == 0, done.stderr
    (built,) = [i for i in json.loads(done.stdout)["indexes"] if i["column"] == FUSED_VECTOR]
    assert built["recall_at_10"] >= 0.95
    sources = set(built["curve"][0]["by_source"])
    assert sources == {IMAGE_VECTOR, TEXT_VECTOR, FUSED_VECTOR}, "whoever may ask is measured"

    rows = open_dataset(table).to_table(limit=40).drop_columns([FUSED_VECTOR])
    rows = rows.set_column(0, ROW_ID, pa.array([f"new{i}" for i in range(40)]))
    lance.write_dataset(rows.replace_schema_metadata(None), table.uri, mode="append")
    assert_fused(table, lacking=frozenset(f"new{i}" for i in range(40)))
    before = open_dataset(table).version
    filled = fuse_table(table)
    assert (filled.outcome, filled.written, filled.fused) == ("filled in", 40, filled.rows)
    assert filled.version == before + 3, "the lease, one commit, the lease"
    made = assert_fused(table)
    hits = search(table, Query(like="r7", k=150, vector_column=FUSED_VECTOR))
    assert not hits.exact
    assert "new7" in hits.rows[ROW_ID].to_pylist()
    done = isthmus("maintain", table, "--json")
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["recalls"][FUSED_VECTOR] or 0) >= 0.95

    other = fuse_table(table, image_weight=0.7)
    assert (other.outcome, other.written) == ("made anew", other.rows)
    remade = assert_fused(table)
    assert remade == replace(made, image_weight=0.7, image_spread=remade.image_spread, text_spread=remade.text_spread)
    hits = search(table, Query(like="r7", k=150, vector_column=FUSED_VECTOR))
    assert hits.exact, "the old vectors' index went with them"
    assert fuse_table(table).outcome == "complete", "a weight that was given once is kept"


def test_what_cannot_be_fused_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = list(unit(rng.normal(size=(6, 16))))
    apart = write_table(tmp_path / "db" / "a", vectors, vectors, items=["i"] * 6, encoder=card(16, spaces=("x", "y")))
    with pytest.raises(ValueError, match=r"16-d.*lie in different spaces and cannot be added; fuse rankings"):
        fuse_table(apart)
    table = write_table(tmp_path / "db" / "t", vectors, vectors, items=["i"] * 6)
    with pytest.raises(ValueError, match="image_weight 1: give a number above 0 and below 1"):
        fuse_table(table, image_weight=1)
    lease = Lease.acquire(table)
    try:
        with pytest.raises(LeaseHeldError):
            fuse_table(TableRef.parse(str(table)))
    finally:
        lease.release()
    open_dataset(table).add_columns({FUSED_VECTOR: "'mine'"})
    with pytest.raises(ValueError, match="has a column 'fused_vector' of its own"):
        fuse_table(table)
    empty = write_table(tmp_path / "db" / "e", [None], [None], items=["i"], dim=16)
    with pytest.raises(ValueError, match="holds no vectors yet"):
        fuse_table(empty)
    metadata = Provenance(encoder=card(16), modalities=("text",)).to_metadata()
    one = pa.table({ROW_ID: ["a"], TEXT_VECTOR: pa.array([vectors[0]], pa.list_(pa.float32(), 16))})
    lance.write_dataset(one.replace_schema_metadata(metadata), str(tmp_path / "db" / "one.lance"))
    with pytest.raises(ValueError, match="has no image_vector to fuse; it has text_vector"):
        fuse_table(TableRef.parse(str(tmp_path / "db" / "one")))


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_an_export_leaves_it_to_be_made_again(form: str, tmp_path: Path) -> None:
    table = planted(tmp_path / "db" / "t")
    fuse_table(table, image_weight=0.3)
    storage = Storage.from_options({})
    done = export_table(table, str(tmp_path / "out"), format=form, storage=storage)  # type: ignore[arg-type]
    assert set(done.vectors) == {IMAGE_VECTOR, TEXT_VECTOR}
    with pytest.raises(ValueError, match="fused_vector is made from the others and is not exported"):
        export_table(table, str(tmp_path / "o"), format="parquet", storage=storage, vectors=[FUSED_VECTOR])
    again = TableRef.parse(str(tmp_path / "db" / "again"))
    import_folder(str(tmp_path / "out"), again, "fake", storage=storage, check=False)
    assert FUSED_VECTOR not in open_dataset(again).schema.names
    fuse_table(again, image_weight=0.3)
    query = Query(words="shape3 colour5", k=9, vector_column=FUSED_VECTOR)
    assert [hit[ROW_ID] for hit in search(again, query).to_list()] == [
        hit[ROW_ID] for hit in search(table, query).to_list()
    ]
