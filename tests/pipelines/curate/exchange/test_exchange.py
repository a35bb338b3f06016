"""The target tool reads an export and gets the same vectors; an imported export can be searched like the table."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving_tools import SECRET, N, make_table
from stores import BUCKET, moto, options

from pipelines.curate.exchange import exporting
from pipelines.curate.exchange.exporting import export_table
from pipelines.curate.exchange.importing import ForeignVectorsError, import_folder
from pipelines.search.retrieval.queries import Query
from pipelines.search.retrieval.search import search
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.opening import open_dataset

STORAGE = Storage.from_options({})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TableRef:
    return make_table(tmp_path_factory.mktemp("exchange"))


def vectors(table: TableRef, column: str) -> np.ndarray:
    rows = lance.dataset(table.uri).to_table(columns=[column])
    return np.array(rows[column].to_pylist(), np.float32)


def test_embedding_reader_reads_an_export_and_gives_the_same_vectors(table: TableRef, tmp_path: Path) -> None:
    from embedding_reader import EmbeddingReader

    done = export_table(table, str(tmp_path / "out"), format="npy", storage=STORAGE, rows_per_file=25)
    assert (done.rows, done.skipped, done.files) == (N, 0, 9)
    for column, folder in (("image_vector", "img_emb"), ("text_vector", "text_emb")):
        reader = EmbeddingReader(
            embeddings_folder=str(tmp_path / "out" / folder),
            metadata_folder=str(tmp_path / "out" / "metadata"),
            file_format="parquet_npy",
            meta_columns=["row_id", "caption", "image_path"],
        )
        assert (reader.count, reader.dimension) == (N, 64)
        found, ids = [], []
        for embeddings, metadata in reader(batch_size=16, start=0, end=reader.count, show_progress=False):
            found.append(embeddings)
            ids += metadata["row_id"].tolist()
        np.testing.assert_array_equal(np.concatenate(found), vectors(table, column))
        assert ids == [f"r'{i}" for i in range(N)]


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_an_import_of_an_export_is_searched_like_the_table(table: TableRef, tmp_path: Path, form: str) -> None:
    out = str(tmp_path / "out")
    export_table(table, out, format=form, storage=STORAGE, rows_per_file=25)  # type: ignore[arg-type]
    again = TableRef.parse(str(tmp_path / "db" / "again"))
    done = import_folder(out, again, "fake", storage=STORAGE)
    assert (done.rows, done.vectors) == (N, {"image_vector": 64, "text_vector": 64})
    assert done.checked["text_vector"] == pytest.approx(1.0, abs=1e-3)
    assert done.checked["image_vector"] is not None
    for query in (
        Query(words="red", k=7),
        Query(like="r'9", k=7, where="price > 20"),
        Query(words="red", distinct=True),
    ):
        assert search(again, query).to_list() == search(table, query).to_list()
    kept = {"row_id", "item_id", "caption", "image_uri", "price", "shop", "day"}
    assert kept <= set(open_dataset(again).schema.names)


def test_an_export_goes_to_s3_and_comes_back(table: TableRef, tmp_path: Path) -> None:
    with moto() as endpoint:
        there = Storage.from_options(options(endpoint))
        out = f"s3://{BUCKET}/out"
        done = export_table(table, out, format="npy", storage=there, where="price < 10", vectors=["image_vector"])
        assert (done.rows, done.files) == (10, 2)
        with pytest.raises(ValueError, match="holds files already"):
            export_table(table, out, format="npy", storage=there)
        again = TableRef.parse(str(tmp_path / "db" / "again"))
        assert import_folder(out, again, "fake", storage=there, check=False).rows == 10


def test_rows_without_a_vector_are_counted_and_left_out(tmp_path: Path) -> None:
    whole = make_table(tmp_path)
    lance.dataset(whole.uri).update({"image_vector": "NULL"}, where="price < 4")
    done = export_table(whole, str(tmp_path / "out"), format="npy", storage=STORAGE)
    assert (done.rows, done.skipped) == (N - 4, 4)
    done = export_table(whole, str(tmp_path / "text"), format="npy", storage=STORAGE, vectors=["text_vector"])
    assert (done.rows, done.skipped) == (N, 0)
    done = export_table(whole, str(tmp_path / "none"), format="npy", storage=STORAGE, where="price < 0")
    assert (done.rows, done.files) == (0, 3)
    with pytest.raises(ValueError, match="no vector column 'nope'; it has image_vector, text_vector"):
        export_table(whole, str(tmp_path / "x"), format="npy", storage=STORAGE, vectors=["nope"])


def clip_retrieval(folder: Path, images: np.ndarray, metadata: dict[str, list[object]]) -> Path:
    """A folder as `clip-retrieval inference` writes it."""
    for part in (folder / "img_emb", folder / "metadata"):
        part.mkdir(parents=True)
    np.save(folder / "img_emb" / "img_emb_0.npy", images)
    pq.write_table(pa.table(metadata), folder / "metadata" / "metadata_0.parquet")
    return folder


def test_what_clip_retrieval_wrote_becomes_a_table(table: TableRef, tmp_path: Path) -> None:
    images = vectors(table, "image_vector").astype(np.float16)
    paths = lance.dataset(table.uri).to_table(columns=["image_uri"])["image_uri"].to_pylist()
    metadata = {"image_path": paths, "caption": [f"c{i}" for i in range(N)], "similarity": [0.3] * N}
    folder = clip_retrieval(tmp_path / "cr", images, metadata)
    ref = TableRef.parse(str(tmp_path / "db" / "t"))
    done = import_folder(str(folder), ref, "fake", storage=STORAGE)
    assert done.vectors == {"image_vector": 64}
    assert done.checked["image_vector"] is not None
    dataset = open_dataset(ref)
    assert dataset.schema.field("image_vector").type == pa.list_(pa.float16(), 64)
    assert search(ref, Query(like="000000007", k=1, columns=("caption", "similarity"))).to_list()
    with pytest.raises(ValueError, match="already exists; give another name"):
        import_folder(str(folder), ref, "fake", storage=STORAGE)


def test_an_import_that_does_not_fit_is_refused_and_leaves_nothing(table: TableRef, tmp_path: Path) -> None:
    images = vectors(table, "image_vector")
    paths = [f"{i}.jpg" for i in range(N)]
    nan = images.copy()
    nan[5, 5] = np.nan
    ref = TableRef.parse(str(tmp_path / "db" / "t"))
    texts = {"caption": [f"red thing {i}" for i in range(N)]}
    noise = np.random.default_rng(0).normal(size=(N, 64)).astype(np.float32)
    cases: list[tuple[str, Path, str, str | None]] = [
        ("gives vectors of 32", clip_retrieval(tmp_path / "a", images, {"image_path": paths}), "fake-32", None),
        ("60 rows, but 59 vectors", clip_retrieval(tmp_path / "b", images[1:], {"image_path": paths}), "fake", None),
        ("values that are not finite", clip_retrieval(tmp_path / "c", nan, {"image_path": paths}), "fake", None),
        ("occurs twice", clip_retrieval(tmp_path / "d", images, {"key": ["a"] * N}), "fake", None),
        ("has no column 'sku'", clip_retrieval(tmp_path / "e", images, {"image_path": paths}), "fake", "sku"),
        ("1 nulls", clip_retrieval(tmp_path / "f", images, {"key": [None, *paths[1:]]}), "fake", None),
        ("give rows of floats", clip_retrieval(tmp_path / "g", images.astype(np.int64), {"key": paths}), "fake", None),
    ]
    for message, folder, encoder, key in cases:
        with pytest.raises(ValueError, match=message):
            import_folder(str(folder), ref, encoder, storage=STORAGE, key=key)
    folder = clip_retrieval(tmp_path / "h", images, texts | {"key": paths})
    (folder / "img_emb").rename(folder / "text_emb")
    (folder / "text_emb" / "img_emb_0.npy").rename(folder / "text_emb" / "text_emb_0.npy")
    np.save(folder / "text_emb" / "text_emb_0.npy", noise)
    with pytest.raises(ForeignVectorsError, match=r"median cosine of -?0\.\d+ to those that 'fake' gives"):
        import_folder(str(folder), ref, "fake", storage=STORAGE)
    with pytest.raises(FileNotFoundError, match="holds neither img_emb nor text_emb"):
        import_folder(str(tmp_path / "nothing"), ref, "fake", storage=STORAGE)
    assert open_dataset(ref, missing_ok=True) is None
    assert not Path(ref.uri).exists()


def test_datasets_loads_an_export_with_its_pictures(table: TableRef, tmp_path: Path) -> None:
    from datasets import Image, load_dataset

    out = tmp_path / "out"
    done = export_table(table, str(out), format="huggingface", storage=STORAGE, rows_per_file=25, pictures=STORAGE)
    # One row names a file that is not a picture, another a remote host.
    assert (done.rows, done.files, done.missing) == (N, 4, 2)
    assert not any(SECRET in file.read_bytes() for file in out.rglob("*.parquet"))
    found = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.num_rows == N
    assert isinstance(found.features["image"], Image)
    assert found["row_id"] == [f"r'{i}" for i in range(N)]
    np.testing.assert_array_equal(np.array(found["image_vector"], np.float32), vectors(table, "image_vector"))
    assert found[7]["image"].size == (48, 36)
    assert [found[n]["image"] for n in (1, 2)] == [None, None]
    assert found[7]["day"].isoformat() == "2026-01-08"
    assert "fake" in (out / "README.md").read_text()


def test_files_with_pictures_hold_fewer_rows(table: TableRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_PICTURES_OF_A_FILE", 25)
    for pictures, files in ((None, 2), (STORAGE, 4)):
        out = str(tmp_path / str(files))
        assert export_table(table, out, format="huggingface", storage=STORAGE, pictures=pictures).files == files


def test_datasets_loads_an_export_without_pictures_of_some_rows(table: TableRef, tmp_path: Path) -> None:
    from datasets import load_dataset

    out = tmp_path / "out"
    chosen = {"where": "price < 10", "vectors": ["text_vector"]}
    export_table(table, str(out), format="huggingface", storage=STORAGE, **chosen)  # type: ignore[arg-type]
    found = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.num_rows == 10
    assert {"image", "image_vector"}.isdisjoint(found.column_names)
    with pytest.raises(ValueError, match="not possible with format npy; give huggingface or fiftyone"):
        export_table(table, str(tmp_path / "no"), format="npy", storage=STORAGE, pictures=STORAGE)
