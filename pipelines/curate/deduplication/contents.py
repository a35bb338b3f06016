"""The distinct contents of a table, and which rows have them: about 40 bytes per row, made in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.protocol import Modality
from pipelines.rows.contract import CAPTION, ITEM_ID, PICTURE
from pipelines.vectors.digests import digest_captions, digest_items, digest_vectors, mix_digests
from pipelines.vectors.scan import Block, scan_blocks

if TYPE_CHECKING:
    import lance

By = Literal["image", "text", "both"]
MODALITIES: dict[By, tuple[Modality, ...]] = {"image": ("image",), "text": ("text",), "both": ("image", "text")}
NOTHING = -1
_OFFSET = "_rowoffset"


@dataclass(frozen=True)
class Contents:
    """Rows by their place in the scan, and the distinct contents in the order of their first occurrence.

    Attributes:
        offset: int64 (rows,), the row's offset in the dataset.
        item: uint64 (rows,), digest of the item id; a row without one is an item by itself.
        caption: uint64 (rows,), digest of the normalised caption; 0 without a caption.
        content: int64 (rows,), number of the row's content; −1 for a row without a vector to compare.
        first: int64 (contents,), place of the first row with the content.
        vectors: for each modality, float32 (contents, dim); None if they are not held.
    """

    offset: NDArray[np.int64]
    item: NDArray[np.uint64]
    caption: NDArray[np.uint64]
    content: NDArray[np.int64]
    first: NDArray[np.int64]
    vectors: tuple[NDArray[np.float32], ...] | None

    def __len__(self) -> int:
        return len(self.first)

    def repeats(self) -> NDArray[np.bool_]:
        """bool (rows,): rows with the same item, content and caption as an earlier row, which therefore add nothing."""
        keys = np.stack([self.item, self.content.astype(np.uint64), self.caption], axis=1)
        _, first = np.unique(keys, axis=0, return_index=True)
        repeats = np.ones(len(self.offset), bool)
        repeats[first] = False
        return repeats & (self.content != NOTHING)


def read_contents(dataset: lance.LanceDataset, by: By, *, hold: bool) -> Contents:
    """Read the contents of a table.

    Args:
        dataset: the table, at the version to read.
        by: what is compared: pictures (`image`), captions (`text`), or both of a row.
        hold: whether to hold the vectors of all contents in memory.
    """
    has_digest = PICTURE in dataset.schema.names
    columns = [ITEM_ID, CAPTION, _OFFSET, *([PICTURE] if has_digest else [])]
    parts: list[tuple[NDArray, NDArray, NDArray, NDArray, NDArray]] = []
    vectors: list[tuple[NDArray[np.float32], ...]] = []
    for block in scan_blocks(dataset, None, columns=columns, modalities=MODALITIES[by]):
        offset = block.rows[_OFFSET].to_numpy().astype(np.int64)
        captions = digest_captions(block.rows[CAPTION])
        there = np.logical_and.reduce([block.has[modality] for modality in MODALITIES[by]])
        digest = _digests(block, captions, by, has_digest=has_digest)
        parts.append((offset, digest_items(block.rows[ITEM_ID], offset), captions, digest, there))
        if hold:
            vectors.append(tuple(block.vectors[modality] for modality in MODALITIES[by]))
    if not parts:
        nothing = np.zeros(0, np.int64)
        return Contents(nothing, nothing.astype(np.uint64), nothing.astype(np.uint64), nothing, nothing, None)
    offset, item, caption, digest, there = (np.concatenate(column) for column in zip(*parts, strict=True))
    content, first = _number(digest, there)
    held = tuple(np.concatenate(part)[first] for part in zip(*vectors, strict=True)) if hold else None
    return Contents(offset, item, caption, content, first, held)


def _number(digest: NDArray[np.uint64], there: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row's content, numbered in the order of first occurrence, and the place where each content first occurs."""
    places = np.flatnonzero(there)
    _, first, which = np.unique(digest[places], return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    content = np.full(len(digest), NOTHING, np.int64)
    content[places] = number[which.reshape(-1)]
    return content, places[first[order]]


def _digests(block: Block, captions: NDArray[np.uint64], by: By, *, has_digest: bool) -> NDArray[np.uint64]:
    """Digests uint64 (rows,), equal for rows with the same content."""
    if by == "text":
        return captions
    pictures = digest_vectors(block.vectors["image"])
    if has_digest:
        pictures = _pictures(block.rows[PICTURE], pictures)
    return pictures if by == "image" else mix_digests(pictures, captions)


def _pictures(column: pa.ChunkedArray, otherwise: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The first half of each picture's own digest (hexadecimal, 128 bits); `otherwise` for rows without one."""
    texts = column.to_pylist()
    return np.array(
        [int(text[:16], 16) if text else other for text, other in zip(texts, otherwise.tolist(), strict=True)],
        np.uint64,
    )
