"""A table's vectors as blocks of float32 arrays, in the order of the scan: bounded memory, both modalities at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.contract import IMAGE_VECTOR, TEXT_VECTOR

if TYPE_CHECKING:
    import lance

_BLOCK_BYTES = 192 << 20
_SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class Block:
    """Rows `start` to `start + len` of the scan; a row without a vector has zeros, which `has_…` tells.

    Attributes:
        start: place of the first row.
        image: float32 (n, dim), L2-normalised.
        text: float32 (n, dim), L2-normalised.
        has_image: bool (n,).
        has_text: bool (n,).
        rows: the other columns asked for.
    """

    start: int
    image: NDArray[np.float32]
    text: NDArray[np.float32]
    has_image: NDArray[np.bool_]
    has_text: NDArray[np.bool_]
    rows: pa.Table

    def __len__(self) -> int:
        return len(self.image)

    def vectors(self, modality: str) -> NDArray[np.float32]:
        """The vectors of `image` or `text`."""
        return self.image if modality == "image" else self.text


def block_rows(dim: int) -> int:
    """Rows of a gallery block: a fixed number of bytes for the two modalities."""
    return max(1, _BLOCK_BYTES // (2 * 4 * dim))


def scan_blocks(
    dataset: lance.LanceDataset, where: str | None, columns: Sequence[str] = (), rows: int | None = None
) -> Iterator[Block]:
    """The table (where a filter holds) in blocks of equal length, but for the last.

    Args:
        dataset: at the version that is mined.
        where: SQL filter or None.
        columns: further columns for `Block.rows`.
        rows: rows of a block; default `block_rows`.
    """
    dim = dataset.schema.field(IMAGE_VECTOR).type.list_size
    size = rows or block_rows(dim)
    scanner = dataset.scanner(
        columns=[IMAGE_VECTOR, TEXT_VECTOR, *columns],
        filter=f"({where})" if where is not None else None,
        batch_size=min(size, 8_192),
        batch_readahead=2,
        fragment_readahead=1,
        scan_in_order=True,
    )
    start = 0
    waiting: list[pa.RecordBatch] = []
    held = 0
    for batch in scanner.to_batches():
        while batch.num_rows:
            taken = batch.slice(0, size - held)
            waiting.append(taken)
            held += taken.num_rows
            batch = batch.slice(taken.num_rows)
            if held == size:
                yield _block(waiting, start)
                start, waiting, held = start + held, [], 0
    if waiting:
        yield _block(waiting, start)


def take_vectors(
    dataset: lance.LanceDataset, offsets: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Image and text vectors, each float32 (n, dim), of rows by their offset in the dataset, in that order."""
    rows = dataset.take(offsets.tolist(), columns=[IMAGE_VECTOR, TEXT_VECTOR])
    return normalise(rows[IMAGE_VECTOR])[0], normalise(rows[TEXT_VECTOR])[0]


def normalise(column: pa.ChunkedArray) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Unit vectors of a fixed-size-list column and which rows have one; nulls, zeros and NaNs have none.

    Returns:
        float32 (n, dim) and bool (n,).
    """
    pieces = [_dense(chunk) for chunk in column.chunks]
    found = np.concatenate(pieces) if pieces else np.zeros((0, column.type.list_size), np.float32)
    valid = np.concatenate([chunk.is_valid().to_numpy(zero_copy_only=False) for chunk in column.chunks] or [[]])
    norms = np.sqrt(np.einsum("nd,nd->n", found, found))
    has = valid.astype(bool) & np.isfinite(norms) & (norms > _SMALLEST_NORM)
    found[~has] = 0.0
    norms[~has] = 1.0
    found /= norms[:, None]
    return found, has


def _dense(chunk: pa.FixedSizeListArray) -> NDArray[np.float32]:
    """A copy (n, dim) of a chunk, with whatever stands under its nulls."""
    dim = chunk.type.list_size
    values = chunk.values.slice(chunk.offset * dim, len(chunk) * dim)
    if values.null_count:
        values = values.fill_null(float("nan"))
    return values.to_numpy(zero_copy_only=False).astype(np.float32, copy=True).reshape(-1, dim)


def _block(batches: list[pa.RecordBatch], start: int) -> Block:
    rows = pa.Table.from_batches(batches)
    image, has_image = normalise(rows[IMAGE_VECTOR])
    text, has_text = normalise(rows[TEXT_VECTOR])
    rest = rows.drop_columns([IMAGE_VECTOR, TEXT_VECTOR])
    return Block(start=start, image=image, text=text, has_image=has_image, has_text=has_text, rows=rest)
