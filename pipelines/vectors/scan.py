"""A table's vectors as blocks of float32 arrays, in the order of the scan, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.protocol import Modality
from pipelines.rows.contract import VECTOR_COLUMNS

if TYPE_CHECKING:
    import lance

_BLOCK_BYTES = 96 << 20
_SMALLEST_NORM = 1e-12
_ROUNDING = 1e-6  # rounding error of the length of a float32 unit vector


@dataclass(frozen=True)
class Block:
    """Consecutive rows of the scan; the vector of a row without one is zero, and `has` is false.

    Attributes:
        start: place of the first row.
        vectors: for each modality read, float32 (n, dim), L2-normalised.
        has: for each modality read, bool (n,), true for rows with a vector.
        rows: the further columns that were asked for.
        size: n, the number of rows.
    """

    start: int
    vectors: dict[Modality, NDArray[np.float32]]
    has: dict[Modality, NDArray[np.bool_]]
    rows: pa.Table
    size: int

    def __len__(self) -> int:
        return self.size


def block_rows(dim: int, modalities: int) -> int:
    """Rows of a block, so that the vectors of all modalities read take a fixed number of bytes."""
    return max(1, _BLOCK_BYTES // (4 * dim * modalities))


def dimension(dataset: lance.LanceDataset, modality: Modality = "image") -> int:
    """Dimension of the vectors of a modality."""
    return int(dataset.schema.field(VECTOR_COLUMNS[modality]).type.list_size)


def scan_blocks(
    dataset: lance.LanceDataset,
    where: str | None,
    columns: Sequence[str] = (),
    modalities: Sequence[Modality] = ("image", "text"),
) -> Iterator[Block]:
    """The rows of a table (those that match a filter) in blocks of equal length, except for the last.

    Args:
        dataset: the table, at the version to read.
        where: SQL filter; None reads all rows.
        columns: further columns for `Block.rows`.
        modalities: the modalities whose vectors are read.
    """
    size = block_rows(max(dimension(dataset, modality) for modality in modalities), len(modalities))
    scanner = dataset.scanner(
        columns=[*(VECTOR_COLUMNS[modality] for modality in modalities), *columns],
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
                yield _block(waiting, start, modalities)
                start, waiting, held = start + held, [], 0
    if waiting:
        yield _block(waiting, start, modalities)


def take_vectors(
    dataset: lance.LanceDataset, offsets: NDArray[np.int64], modalities: Sequence[Modality] = ("image", "text")
) -> tuple[NDArray[np.float32], ...]:
    """The vectors of the rows at some offsets in the dataset, in that order: float32 (n, dim) for each modality."""
    names = [VECTOR_COLUMNS[modality] for modality in modalities]
    rows = dataset.take(offsets.tolist(), columns=names)
    return tuple(normalise(rows[name])[0] for name in names)


def normalise(column: pa.ChunkedArray) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Unit vectors of a fixed-size-list column, and which rows have one; nulls, zeros and NaNs do not count as one.

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
    if np.abs(norms - 1.0).max(initial=0.0) > _ROUNDING:
        found /= norms[:, None]
    return found, has


def _dense(chunk: pa.FixedSizeListArray) -> NDArray[np.float32]:
    """A view or copy (n, dim) of a chunk; the values under its nulls are arbitrary."""
    dim = chunk.type.list_size
    values = chunk.values.slice(chunk.offset * dim, len(chunk) * dim)
    if values.null_count:
        values = values.fill_null(float("nan"))
    return values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, dim)


def _block(batches: list[pa.RecordBatch], start: int, modalities: Sequence[Modality]) -> Block:
    rows = pa.Table.from_batches(batches)
    found = {modality: normalise(rows[VECTOR_COLUMNS[modality]]) for modality in modalities}
    return Block(
        start=start,
        vectors={modality: vectors for modality, (vectors, _) in found.items()},
        has={modality: has for modality, (_, has) in found.items()},
        rows=rows.drop_columns([VECTOR_COLUMNS[modality] for modality in modalities]),
        size=rows.num_rows,
    )
