"""Vectors, queries, exact answers and a table for the search bench. They are made once and kept in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.registry import describe
from pipelines.rows.contract import CAPTION, IMAGE_URI, ITEM_ID, ROW_ID
from pipelines.store.storage import TableRef
from pipelines.tables.provenance import Provenance

K, TUNING, ASKED = 10, 100, 100
COLUMN = "image_vector"
_CENTRES, BLOCK, _CAPTIONED = 2_000, 100_000, 2_000


def vectors_of(rows: int, dim: int, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """Blocks of unit vectors around 2,000 centres, float32 (n, dim)."""
    centres = np.random.default_rng(1).normal(size=(_CENTRES, dim)).astype(np.float32)
    rng = np.random.default_rng(seed)
    for start in range(0, rows, BLOCK):
        n = min(BLOCK, rows - start)
        block = centres[rng.integers(0, _CENTRES, n)] + 0.9 * rng.normal(size=(n, dim)).astype(np.float32)
        yield unit(block)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors scaled to length 1, float32 (n, dim)."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def queries_of(dim: int) -> NDArray[np.float32]:
    """Queries, float32 (n, dim). Half are like the vectors; half are moved in one direction, like words."""
    found = np.concatenate(list(vectors_of(TUNING + ASKED, dim, seed=9)))
    found[::2] = _moved(found[::2])
    return found


def _moved(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    gap = np.random.default_rng(2).normal(size=vectors.shape[1]).astype(np.float32)
    return unit(vectors + 0.7 * gap / np.linalg.norm(gap))


def write_table(folder: Path, rows: int, dim: int) -> TableRef:
    """A table with the vectors as image vectors. An existing one is reused.

    Its first rows also have text vectors, moved away from the pictures like some queries: `isthmus index` measures with
    both.
    """
    ref = TableRef.parse(str(folder / "db" / "t"))
    if Path(ref.uri).exists():
        return ref
    provenance = Provenance(encoder=describe("fake").card, modalities=("image", "text"))
    words = _moved(np.concatenate(list(vectors_of(_CAPTIONED, dim, seed=8))))
    for number, block in enumerate(vectors_of(rows, dim)):
        first = number * BLOCK
        ids = [f"{n:08d}" for n in range(first, first + len(block))]
        table = pa.table(
            {
                ROW_ID: ids,
                ITEM_ID: ids,
                CAPTION: pa.nulls(len(ids), pa.string()),
                IMAGE_URI: pa.nulls(len(ids), pa.string()),
                "n": np.arange(first, first + len(block)),
                COLUMN: pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), dim),
                "text_vector": pa.array(
                    [*words, *([None] * (len(block) - len(words)))] if number == 0 else [None] * len(block),
                    pa.list_(pa.float32(), dim),
                ),
            }
        ).replace_schema_metadata(provenance.to_metadata())
        lance.write_dataset(table, ref.uri, mode="append" if number else "create")
    return ref


def exact(folder: Path, rows: int, dim: int, queries: NDArray[np.float32], step: int = 1) -> NDArray[np.int64]:
    """The numbers of the K nearest rows of each query among every `step`-th row, int64 (queries, K)."""
    kept_file = folder / f"exact-{step}.npy"
    if kept_file.exists():
        return np.asarray(np.load(kept_file))
    scores = np.full((len(queries), K), -np.inf, np.float32)
    ids = np.zeros((len(queries), K), np.int64)
    for number, block in enumerate(vectors_of(rows, dim)):
        places = np.arange(number * BLOCK, number * BLOCK + len(block))
        kept = places % step == 0
        both = np.concatenate([scores, queries @ block[kept].T], axis=1)
        names = np.concatenate([ids, np.broadcast_to(places[kept], (len(queries), int(kept.sum())))], axis=1)
        best = np.argsort(-both, axis=1)[:, :K]
        scores, ids = np.take_along_axis(both, best, 1), np.take_along_axis(names, best, 1)
    np.save(kept_file, ids)
    return ids
