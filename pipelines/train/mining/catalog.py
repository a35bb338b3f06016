"""The catalog: what mining knows of every row besides its vectors, about 50 bytes per row, shared by all tasks.

It is made in one pass. Ids and captions are 64-bit digests, so that they are compared as arrays; strings are read again
only for the rows that are written. Among a million rows, two different strings have equal digests with a probability of
3e-8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.rows.contract import CAPTION, ITEM_ID
from pipelines.train.mining.mining_settings import Direction
from pipelines.vectors.digests import digest_captions, digest_items, digest_vectors, mix_digests
from pipelines.vectors.scan import scan_blocks

if TYPE_CHECKING:
    import lance

_OFFSET = "_rowoffset"
# In the order of the arguments of `make_catalog`.
_PARTS = {
    "offset": np.int64,
    "item": np.uint64,
    "caption": np.uint64,
    "positive": np.float32,
    "shown": np.uint64,
    "text": np.bool_,
}
_NO_CAPTION = np.uint64(0)


@dataclass(frozen=True)
class Catalog:
    """Rows by their place in the scan; every array except `by_picture` and `said` has one entry per row.

    Attributes:
        offset: int64, the row's offset in the dataset.
        item: uint64, digest of the item id; a row without one is an item by itself.
        caption: uint64, digest of the normalised caption; 0 without a caption.
        positive: float32, cosine of the row's own picture and caption; NaN if one is missing.
        picture: int32, place of the first row with the same item and the same picture; -1 without a picture.
        has_text: bool, true for rows with a text vector.
        by_picture: int32, the places of rows with a picture, ordered by `picture`.
        said: uint64, the sorted digests of all existing pairs (item, caption).
    """

    offset: NDArray[np.int64]
    item: NDArray[np.uint64]
    caption: NDArray[np.uint64]
    positive: NDArray[np.float32]
    picture: NDArray[np.int32]
    has_text: NDArray[np.bool_]
    by_picture: NDArray[np.int32]
    said: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.offset)

    def gallery(self, direction: Direction) -> NDArray[np.bool_]:
        """bool (rows,), the candidates: every caption, but each picture of an item once (its first row)."""
        if direction == "image_to_text":
            return self.has_text
        return self.picture == np.arange(len(self), dtype=np.int32)

    def anchors(self) -> NDArray[np.int64]:
        """Places of the rows with both a picture and a caption, int64."""
        return np.flatnonzero(~np.isnan(self.positive))

    def is_said_of(self, item: NDArray[np.uint64], caption: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether a row of the item has the caption: bool, in the shape of the arguments."""
        wanted = _pairs(item, caption)
        at = np.searchsorted(self.said, wanted)
        found = self.said[np.minimum(at, len(self.said) - 1)] == wanted if len(self.said) else np.zeros(1, bool)
        return found & (caption != _NO_CAPTION)

    def rows_of_pictures(self, pictures: NDArray[np.integer]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """All rows that show the given pictures (each named by the place of its first row).

        Returns:
            (index into `pictures`, place of the row), both int32 (m,).
        """
        ordered = self.picture[self.by_picture]
        first = np.searchsorted(ordered, pictures, "left").astype(np.int32)
        counts = np.searchsorted(ordered, pictures, "right").astype(np.int32) - first
        which = np.repeat(np.arange(len(pictures), dtype=np.int32), counts)
        at = np.arange(len(which), dtype=np.int32)
        at += (first - (np.cumsum(counts, dtype=np.int32) - counts))[which]
        return which, self.by_picture[at]


def read_catalog(dataset: lance.LanceDataset, where: str | None) -> Catalog:
    """Read the catalog in one pass over the table and both vector columns; memory holds the catalog and one block."""
    parts: dict[str, list[NDArray]] = {name: [np.zeros(0, kind)] for name, kind in _PARTS.items()}
    for block in scan_blocks(dataset, where, columns=[ITEM_ID, CAPTION, _OFFSET]):
        image, has_image, has_text = block.vectors["image"], block.has["image"], block.has["text"]
        offset = block.rows[_OFFSET].to_numpy().astype(np.int64)
        item = digest_items(block.rows[ITEM_ID], offset)
        both = has_image & has_text
        positive = np.einsum("nd,nd->n", image, block.vectors["text"])
        shown = mix_digests(item, digest_vectors(image))
        parts["offset"].append(offset)
        parts["item"].append(item)
        parts["caption"].append(digest_captions(block.rows[CAPTION]))
        parts["positive"].append(np.where(both, positive, np.float32("nan")).astype(np.float32))
        parts["shown"].append(np.where(has_image, shown, np.uint64(0)))
        parts["text"].append(has_text)
    return make_catalog(*(np.concatenate(pieces) for pieces in parts.values()))


def make_catalog(
    offset: NDArray, item: NDArray, caption: NDArray, positive: NDArray, shown: NDArray, has_text: NDArray
) -> Catalog:
    """A catalog from its columns; `shown` is a digest of item and picture, 0 without a picture."""
    places = np.arange(len(offset))
    shows = places[shown != 0]
    _, first, group = np.unique(shown[shows], return_index=True, return_inverse=True)
    picture = np.full(len(offset), -1, np.int32)
    picture[shows] = shows[first][group]
    by_picture = shows[np.argsort(picture[shows], kind="stable")].astype(np.int32)
    spoken = caption != _NO_CAPTION
    said = np.unique(_pairs(item[spoken], caption[spoken]))
    return Catalog(offset, item, caption, positive, picture, has_text.astype(bool), by_picture, said)


def _pairs(item: NDArray[np.uint64], caption: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return mix_digests(item, caption)
