"""Vectors that this process made recently: a picture or caption that recurs in any block is encoded once per actor."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.rows.blocks import KNOWN_PREFIX, PIXELS, REASON, set_column
from pipelines.rows.contract import IMAGE, IMAGE_VECTOR, PICTURE, TEXT, TEXT_VECTOR

DIGESTS = {IMAGE_VECTOR: PICTURE, TEXT_VECTOR: TEXT}
_MAX_BYTES = 16 << 20
# Python's overhead per entry: its key, its array, its place in the dictionary.
_ENTRY_BYTES = 400


class RecentVectors:
    """The vectors of recent pictures and captions, by digest.

    Args:
        max_bytes: memory for the vectors of each modality, in bytes; the oldest are dropped first.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._found: dict[str, OrderedDict[str, NDArray[np.floating]]] = {name: OrderedDict() for name in DIGESTS}

    def clear(self) -> None:
        """Forget all vectors, because the encoder is another one."""
        for found in self._found.values():
            found.clear()

    def attach(self, block: pa.Table, *, keep_pictures: bool = False) -> pa.Table:
        """The block with `_known_…` columns for known vectors, and without the pictures that need no encoding.

        Args:
            block: a block before it is decoded, or before it is encoded.
            keep_pictures: keep the bytes of known pictures (for thumbnails); their pixels are always dropped.
        """
        for vector, found in self._found.items():
            digests = block[DIGESTS[vector]].to_pylist() if found else []
            if not any(digest in found for digest in digests):
                continue
            block = _with_known(block, vector, [found.get(digest) for digest in digests])
            if vector == IMAGE_VECTOR:
                spare = [PIXELS] if keep_pictures else [PIXELS, IMAGE]
                is_known = block[KNOWN_PREFIX + vector].is_valid()
                for name in set(spare) & set(block.column_names):
                    block = set_column(block, name, pc.if_else(is_known, None, block[name]).combine_chunks())
        return block

    def remember(self, block: pa.Table) -> None:
        """Keep the vectors of an encoded block."""
        is_good = block[REASON].is_null().to_pylist()
        for vector, found in self._found.items():
            if vector not in block.column_names or not block.num_rows:
                continue
            array = block[vector].combine_chunks()
            dim = array.type.list_size
            values = array.values.to_numpy(zero_copy_only=False).reshape(-1, dim)[array.offset :]
            valid = array.is_valid().to_pylist()
            for row, digest in enumerate(block[DIGESTS[vector]].to_pylist()):
                if digest is not None and valid[row] and is_good[row] and digest not in found:
                    found[digest] = values[row].copy()
            while len(found) * (dim * values.itemsize + _ENTRY_BYTES) > self._max_bytes:
                found.popitem(last=False)


def _with_known(block: pa.Table, vector: str, values: list[NDArray[np.floating] | None]) -> pa.Table:
    """The block with a column of known vectors; those already in the column stay."""
    name = KNOWN_PREFIX + vector
    first = next(value for value in values if value is not None)
    kind = pa.list_(pa.from_numpy_dtype(first.dtype), len(first))
    if name not in block.column_names:
        return block.append_column(name, pa.array(values, kind))
    known = block[name].to_pylist()
    both = [old if old is not None else new for old, new in zip(known, values, strict=True)]
    return set_column(block, name, pa.array(both, block.schema.field(name).type))


@cache
def recent_vectors() -> RecentVectors:
    """The instance of this process. Decoding uses it too, which helps if it shares a process with the encoder."""
    return RecentVectors()
