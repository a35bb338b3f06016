"""Batches of a table: the right rows, in the requested order, in the form that the towers take."""

from __future__ import annotations

import pickle
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from corpora import picture

from encoders.images import ImageTransform, open_image
from encoders.images.prepare import prepare_image
from pipelines.store.storage import TableRef
from pipelines.train.finetuning.loading import Needs, TableAt, load, pictures_column

TRANSFORM = ImageTransform(kind="shortest_edge", size=(32, 32), crop=(32, 32))
N = 30


def table(folder: Path, *, thumbnails: bool = False, changes: dict[str, list[object]] | None = None) -> TableAt:
    uris = []
    for i in range(N):
        path = folder / f"{i // 2}.png"
        path.write_bytes(picture(i // 2, kind="PNG"))
        uris.append(str(path))
    columns: dict[str, object] = {
        "row_id": [f"r{i}" for i in range(N)],
        "item_id": [f"i{i // 2}" for i in range(N)],
        "caption": [f"c{i % 7}" for i in range(N)],
        "image_uri": pa.array(uris, pa.string()),
        "image_vector": pa.array([[float(i), 0.5, -1.0] for i in range(N)], pa.list_(pa.float16(), 3)),
        "text_vector": pa.array([[float(-i), 1.0] for i in range(N)], pa.list_(pa.float32(), 2)),
    }
    if thumbnails:
        columns["thumbnail"] = pa.array([picture(i // 2 + 500) for i in range(N)], pa.binary())
    ref = TableRef.parse(str(folder / "t.lance"))
    dataset = lance.write_dataset(pa.table({**columns, **(changes or {})}), ref.uri, max_rows_per_file=8)
    return TableAt(ref=ref, version=dataset.version)


def needs(at: TableAt, *, image: bool = False, text: bool = False, **more: object) -> Needs:
    return Needs(samples=at, image_features=image, text_features=text, transform=TRANSFORM, **more)  # type: ignore[arg-type]


ORDER = np.array([17, 3, 29, 2, 3])


def test_rows_come_in_the_order_asked_for_with_their_own_vectors(tmp_path: Path) -> None:
    """Vectors in one order with ids in another train on wrong pairs, without an error."""
    batch = load(needs(table(tmp_path), image=True, text=True), ORDER, None, 0)
    assert batch["image_features"][:, 0].tolist() == ORDER.tolist()
    assert batch["text_features"][:, 0].tolist() == (-ORDER).tolist()
    assert batch["image_features"].dtype == batch["text_features"].dtype == np.float32
    ids = batch["image_ids"].tolist()
    assert [ids.index(i) for i in ids] == [0, 1, 2, 1, 1], "rows 2 and 3 are one picture"
    texts = batch["text_ids"].tolist()
    assert [texts.index(t) for t in texts] == [0, 0, 2, 3, 0], "rows 17 and 3 say the same"
    assert set(batch) == {"image_ids", "text_ids", "image_features", "text_features"}


def test_pictures_by_uri_and_captions_as_they_are(tmp_path: Path) -> None:
    batch = load(needs(table(tmp_path)), ORDER, None, 0)
    assert batch["captions"] == [f"c{i % 7}" for i in ORDER]
    for found, row in zip(batch["pictures"], ORDER, strict=True):
        expected = prepare_image(open_image(picture(row // 2, kind="PNG")), TRANSFORM)
        np.testing.assert_array_equal(found, expected)


def test_pictures_of_the_table_itself_are_taken_first(tmp_path: Path) -> None:
    at = table(tmp_path, thumbnails=True)
    column = pictures_column(lance.dataset(at.ref.uri).schema)
    assert column == "thumbnail"
    [found] = load(needs(at, text=True, pictures=column), ORDER[:1], None, 0)["pictures"]
    np.testing.assert_array_equal(found, prepare_image(open_image(picture(508)), TRANSFORM))


def test_a_picture_changes_with_the_step_and_its_row_and_not_with_its_batch(tmp_path: Path) -> None:
    """Two workers must see the pictures that one would have seen; two captions of a picture see two crops."""
    wanted = needs(table(tmp_path), augmentation="strong", seed=4)
    whole = load(wanted, ORDER, None, 6)["pictures"]
    parts = [*load(wanted, ORDER[:2], None, 6)["pictures"], *load(wanted, ORDER[2:], None, 6)["pictures"]]
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(whole[1], whole[3])
    assert not np.array_equal(load(wanted, ORDER, None, 7)["pictures"][0], whole[0])
    plain = load(needs(wanted.samples), ORDER, None, 6)["pictures"]
    for a, b in zip(load(wanted, ORDER, None, -1)["pictures"], plain, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_process_without_rows_gets_empty_arrays(tmp_path: Path) -> None:
    none = np.zeros(0, np.int64)
    at = table(tmp_path)
    batch = load(needs(at, image=True, text=True, teacher=at, teacher_columns=("image_vector",)), none, none, 0)
    shapes = {name: array.shape for name, array in batch.items()}
    assert shapes["image_features"] == shapes["teacher_image"] == (0, 3)
    assert shapes["text_features"] == (0, 2)
    assert shapes["image_ids"] == (0,)
    assert load(needs(at), none, None, 0)["pictures"] == load(needs(at), none, None, 0)["captions"] == []


def test_the_teachers_vectors_are_of_its_own_rows(tmp_path: Path) -> None:
    at = table(tmp_path)
    wanted = needs(at, image=True, text=True, teacher=at, teacher_columns=("image_vector", "text_vector"))
    batch = load(wanted, ORDER, ORDER[::-1].copy(), 0)
    assert batch["teacher_image"][:, 0].tolist() == ORDER[::-1].tolist()
    assert batch["teacher_text"][:, 0].tolist() == (-ORDER[::-1]).tolist()
    assert "teacher_image" not in load(wanted, ORDER, None, 0)


def test_the_version_that_was_planned_is_read(tmp_path: Path) -> None:
    """The offsets of one version are other rows in the next."""
    at = table(tmp_path)
    lance.dataset(at.ref.uri).delete("row_id = 'r0'")
    assert load(needs(at, image=True, text=True), ORDER, None, 0)["image_features"][:, 0].tolist() == ORDER.tolist()


@pytest.mark.parametrize("data", [None, b"", b"no picture", picture(1)[:200]])
def test_a_picture_that_went_bad_is_named(data: bytes | None, tmp_path: Path) -> None:
    at = table(tmp_path, changes={"thumbnail": pa.array([data] * N, pa.binary())})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"the picture of item 'i8' cannot be read: .*embed the corpus again"):
        load(needs(at, pictures="thumbnail"), ORDER, None, 0)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    at = table(tmp_path)
    (tmp_path / "8.png").unlink()
    with pytest.raises(ValueError, match="the picture of item 'i8' cannot be read"):
        load(needs(at), ORDER, None, 0)


def test_a_row_without_a_vector_is_an_error(tmp_path: Path) -> None:
    vectors = pa.array([None if i == 3 else [float(i)] for i in range(N)], pa.list_(pa.float32(), 1))
    at = table(tmp_path, changes={"image_vector": vectors})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="2 rows of the batch have no vector"):
        load(needs(at, image=True), ORDER, None, 0)
    assert load(needs(at, image=True), ORDER[:1], None, 0)["image_features"].tolist() == [[17.0]]


def test_what_a_task_needs_can_be_sent_to_it(tmp_path: Path) -> None:
    wanted = needs(table(tmp_path), augmentation="light")
    assert pickle.loads(pickle.dumps(wanted)) == wanted
