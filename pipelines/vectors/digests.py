"""64-bit digests of rows' contents (captions, items and vectors), to compare them as arrays."""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_SPACES = re.compile(r"\s+")


_MIX = np.uint64(0x9E3779B97F4A7C15)


def normalised_caption(caption: str) -> str:
    """A caption without differences that do not change its meaning: case, spaces, final punctuation, Unicode variants.

    >>> normalised_caption("  A  Red\\tDog. ")
    'a red dog'
    """
    text = unicodedata.normalize("NFKC", caption).casefold()
    return _SPACES.sub(" ", text).strip().rstrip(".。!?！？").rstrip()


def digest_captions(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Digests uint64 (n,): equal for captions that differ only in ways that do not change the meaning; 0 for none."""
    texts = (normalised_caption(text) if text else "" for text in column.to_pylist())
    return np.array([_digest(text) if text else 0 for text in texts], np.uint64)


def digest_items(column: pa.ChunkedArray, offset: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Digests uint64 (n,): equal for rows of one item; a row without an item id is an item by itself."""
    names = zip(column.to_pylist(), offset.tolist(), strict=True)
    return np.array([_digest(f"o{place}" if item is None else f"i{item}") for item, place in names], np.uint64)


def _digest(text: str) -> int:
    """64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") or 1


def mix_digests(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Digests of pairs of digests, uint64 (n,); never 0."""
    mixed = (a ^ (b * _MIX)) * _MIX
    mixed ^= mixed >> np.uint64(29)
    return np.maximum(mixed * _MIX, np.uint64(1))


def digest_vectors(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Digests uint64 (n,), equal for equal vectors.

    A digest is the sum, modulo 2**64, of each value's bits times an odd number that belongs to its dimension.
    """
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 1 << 63, size=(vectors.shape[1],), dtype=np.uint64)
    weights = weights * np.uint64(2) + np.uint64(1)
    bits = (vectors + np.float32(0)).view(np.uint32)  # + 0 makes −0 and 0 equal
    total = np.zeros(len(vectors), np.uint64)
    for d in range(vectors.shape[1]):
        total += bits[:, d].astype(np.uint64) * weights[d]
    return total
