"""From rows of a table to a batch: pictures or their features, captions or theirs, ids, a teacher's vectors.

It runs in Ray tasks, beside the training processes. A step's batch depends only on the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.images.augment import Augmentation
from encoders.images.transform import ImageTransform
from pipelines.rows.contract import CAPTION, IMAGE_URI, IMAGE_VECTOR, ITEM_ID, TEXT_VECTOR, THUMBNAIL
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.joins import hashed
from pipelines.tables.opening import open_at
from pipelines.train.finetuning.shuffle import mixed

if TYPE_CHECKING:
    import lance

Arrays = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TableAt:
    """A table at one of its versions."""

    ref: TableRef
    version: int


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a batch holds: plain data, pickled to the tasks.

    Attributes:
        samples: the training table.
        image_features: whether its image vectors replace the pictures.
        text_features: whether its text vectors replace the captions.
        pictures: column with the pictures' bytes; None reads them by their URI.
        transform: transform of the image tower; None if no pictures are read.
        augmentation: augmentation of pictures in training.
        storage: how to reach the corpus's pictures.
        teacher: table with a teacher's vectors; None without a teacher.
        teacher_columns: the vector columns to read from it.
        seed: seed of the augmentation.
    """

    samples: TableAt
    image_features: bool
    text_features: bool
    pictures: str | None = None
    transform: ImageTransform | None = None
    augmentation: Augmentation = "none"
    storage: Storage = field(default_factory=Storage)
    teacher: TableAt | None = None
    teacher_columns: tuple[str, ...] = ()
    seed: int = 0

    @property
    def columns(self) -> list[str]:
        """Columns to read from the training table."""
        picture = IMAGE_VECTOR if self.image_features else (self.pictures or IMAGE_URI)
        return [*dict.fromkeys([ITEM_ID, CAPTION, picture, *([TEXT_VECTOR] if self.text_features else [])])]


def load(needs: Needs, offsets: NDArray[np.int64], teacher_offsets: NDArray[np.int64] | None, salt: int) -> Arrays:
    """Load the batch of some rows.

    Args:
        needs: what the batch holds.
        offsets: int64 (n,), offsets of the rows in the training table.
        teacher_offsets: int64 (n,), offsets of the same rows in the teacher's table.
        salt: number of the step, for the augmentation; −1 leaves pictures unchanged.

    Returns:
        `image_ids`, `text_ids` int64 (n,); `image_features` (n, dim) or `pictures` (a list of uint8 (height, width,
        3)); `text_features` (n, dim) or `captions` (a list of strings); `teacher_image`, `teacher_text` (n, teacher
        dim).

    Raises:
        ValueError: a picture that was readable when it was embedded can no longer be read, or a row has no vector.
    """
    table = take(needs.samples, offsets, needs.columns)
    batch: Arrays = {"image_ids": hashed(table[ITEM_ID]), "text_ids": hashed(table[CAPTION])}
    if needs.image_features:
        batch["image_features"] = as_matrix(table[IMAGE_VECTOR])
    else:
        batch["pictures"] = _pictures(needs, table, offsets, salt)
    if needs.text_features:
        batch["text_features"] = as_matrix(table[TEXT_VECTOR])
    else:
        batch["captions"] = table[CAPTION].to_pylist()
    if needs.teacher is not None and teacher_offsets is not None:
        vectors = take(needs.teacher, teacher_offsets, list(needs.teacher_columns))
        for column in needs.teacher_columns:
            batch["teacher_" + column.removesuffix("_vector")] = as_matrix(vectors[column])
    return batch


def take(table: TableAt, offsets: NDArray[np.int64], columns: list[str]) -> pa.Table:
    """The rows at some offsets of a table, in the order given."""
    dataset = _open(table)
    if not len(offsets):
        return dataset.schema.empty_table().select(columns)
    return dataset.take(offsets.tolist(), columns=columns)


def as_matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A vector column as float32 (n, dim).

    Raises:
        ValueError: a row has no vector.
    """
    if column.null_count:
        raise ValueError(f"{column.null_count} rows of the batch have no vector; exclude them with --where")
    dim = column.type.list_size
    pieces = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return flat.reshape(-1, dim).astype(np.float32)


@lru_cache(maxsize=8)
def _open(table: TableAt) -> lance.LanceDataset:
    return open_at(table.ref, table.version)


def _pictures(needs: Needs, table: pa.Table, offsets: NDArray[np.int64], salt: int) -> list[NDArray[np.uint8]]:
    from encoders.images import ImageError, open_image
    from encoders.images.augment import augment
    from encoders.images.prepare import prepare_image

    assert needs.transform is not None
    seeds = mixed(needs.seed, max(salt, 0), offsets) >> np.uint64(1)
    strength: Augmentation = needs.augmentation if salt >= 0 else "none"
    found = []
    for data, seed, row in zip(_bytes(needs, table), seeds.tolist(), table[ITEM_ID].to_pylist(), strict=True):
        if not isinstance(data, bytes):
            raise ValueError(
                f"the picture of item {row!r} cannot be read: {data or 'there is none'}; embed the corpus again"
            )
        try:
            image = augment(open_image(data), strength, int(seed))
        except ImageError as error:
            raise ValueError(f"the picture of item {row!r} cannot be read: {error}; embed the corpus again") from error
        found.append(prepare_image(image, needs.transform))
    return found


def _bytes(needs: Needs, table: pa.Table) -> list[Any]:
    from pipelines.sources.locate import read_images

    if needs.pictures is not None:
        return table[needs.pictures].to_pylist()
    uris = table[IMAGE_URI].to_pylist()
    unique = list(dict.fromkeys(uri for uri in uris if uri))
    found = dict(zip(unique, read_images(unique, needs.storage), strict=True))
    return [found.get(uri) for uri in uris]


def pictures_column(schema: pa.Schema) -> str | None:
    """The column of a table that holds its pictures; None if the table holds only their URIs."""
    return THUMBNAIL if THUMBNAIL in schema.names else None
