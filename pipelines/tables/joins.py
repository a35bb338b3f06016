"""Joins rows of two tables by `row_id`: each table is streamed once, and 16 bytes per row stay in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.rows.contract import ROW_ID
from pipelines.tables.splitting import OFFSET

if TYPE_CHECKING:
    import lance


def hashed(values: pa.Array | pa.ChunkedArray | Sequence[Any]) -> NDArray[np.int64]:
    """(n,) int64: a 64-bit hash of each value's text. Null has a hash of its own."""
    texts = values.to_pylist() if isinstance(values, (pa.Array, pa.ChunkedArray)) else values
    found = (hashlib.blake2b(("\0" if text is None else str(text)).encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(found), "<i8").astype(np.int64)


class RowIndex:
    """Maps row ids to the offsets of a table's rows."""

    def __init__(self, dataset: lance.LanceDataset) -> None:
        hashes, offsets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for batch in dataset.scanner(columns=[ROW_ID, OFFSET]).to_batches():
            hashes.append(hashed(batch[ROW_ID]))
            offsets.append(batch[OFFSET].to_numpy(zero_copy_only=False).astype(np.int64))
        unsorted = np.concatenate(hashes)
        order = np.argsort(unsorted, kind="stable")
        self._hashes, self._offsets = unsorted[order], np.concatenate(offsets)[order]

    def find(self, row_ids: pa.Array | pa.ChunkedArray | Sequence[str | None]) -> NDArray[np.int64]:
        """(n,) offsets of the rows with these ids; −1 for ids that the table lacks."""
        wanted = hashed(row_ids)
        if not len(self._hashes):
            return np.full(len(wanted), -1, np.int64)
        places = np.searchsorted(self._hashes, wanted).clip(max=len(self._hashes) - 1)
        return np.where(self._hashes[places] == wanted, self._offsets[places], -1)


def places_of(offsets: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) the index of each offset in the ascending array `among`; −1 for offsets that are not in it."""
    if not len(among):
        return np.full(len(offsets), -1, np.int64)
    found = np.searchsorted(among, offsets).clip(max=len(among) - 1)
    return np.where(among[found] == offsets, found, -1)


def joined_offsets(
    dataset: lance.LanceDataset, offsets: NDArray[np.int64], other: lance.LanceDataset, what: str
) -> NDArray[np.int64]:
    """For each row of one table, the offset of the row with the same id in another table.

    Args:
        dataset: the first table.
        offsets: (n,) offsets of its rows.
        other: the table to look in.
        what: how error messages call the other table.

    Returns:
        (n,) offsets in `other`.

    Raises:
        ValueError: some rows have no partner.
    """
    index = RowIndex(other)
    ids = dataset.take(offsets.tolist(), columns=[ROW_ID])[ROW_ID] if len(offsets) else pa.array([], pa.string())
    found = index.find(ids)
    if (missing := int((found < 0).sum())) > 0:
        first = ids[int(np.flatnonzero(found < 0)[0])].as_py()
        raise ValueError(
            f"{what}: has no row for {missing:,} of {len(offsets):,} rows of the training table, {first!r} among them; "
            "embed the same corpus with it, with the same keys"
        )
    return found
