"""Reading for exploration: a sample of rows with their vectors, and passes over all rows to find oddities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.protocol import Modality
from pipelines.rows.contract import CAPTION, IMAGE_URI, ITEM_ID, ROW_ID, THUMBNAIL, VECTOR_COLUMNS
from pipelines.vectors.exact import search_all
from pipelines.vectors.scan import normalise, scan_blocks

if TYPE_CHECKING:
    import lance

_OFFSET = "_rowoffset"


@dataclass(frozen=True)
class VectorSample:
    """A sample of a table's rows.

    Attributes:
        rows: `row_id`, `item_id`, `caption`, `image_uri` and, if the table has it, `thumbnail`.
        vectors: float32 (n, dim), L2-normalised.
        total: number of rows with a vector from which the sample was drawn; a picture of several rows counts once.
    """

    rows: pa.Table
    vectors: NDArray[np.float32]
    total: int

    def __len__(self) -> int:
        return len(self.vectors)


def shown_columns(dataset: lance.LanceDataset) -> list[str]:
    """The columns that a page shows."""
    return [ROW_ID, ITEM_ID, CAPTION, IMAGE_URI, *([THUMBNAIL] if THUMBNAIL in dataset.schema.names else [])]


def draw(dataset: lance.LanceDataset, modality: Modality, where: str | None, count: int, seed: int) -> VectorSample:
    """A uniform sample of at most `count` rows that have a vector, in the table's order.

    With image vectors, a picture of several rows is drawn once, with the caption of the first row.

    Args:
        dataset: the table, at the version to read.
        modality: the modality whose vectors are read.
        where: SQL filter; None takes all rows.
        count: the most rows to draw.
        seed: seed of the sample.
    """
    column, condition = VECTOR_COLUMNS[modality], _has_vector(modality, where)
    found = dataset.scanner(columns=[_OFFSET, IMAGE_URI], filter=condition, scan_in_order=True).to_table()
    offsets = found[_OFFSET].to_numpy().astype(np.int64)
    if modality == "image":
        offsets = offsets[_first_of_pictures(found[IMAGE_URI])]
    total = len(offsets)
    if len(offsets) > count:
        offsets = np.sort(np.random.default_rng(seed).choice(offsets, count, replace=False))
    columns = [*shown_columns(dataset), column]
    rows = dataset.take(offsets.tolist(), columns=columns) if len(offsets) else dataset.schema.empty_table()
    vectors, has = normalise(rows[column])
    rows = rows.select(columns).drop_columns([column]).filter(pa.array(has))
    return VectorSample(rows, vectors[has], total)


def _first_of_pictures(uris: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Whether each row is the first with its picture, bool (n,); a row without a URI has a picture by itself."""
    codes = uris.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    first = np.zeros(len(codes), bool)
    first[np.unique(codes, return_index=True)[1]] = True
    return first | (codes < 0)


def outlierness(
    dataset: lance.LanceDataset, modality: Modality, where: str | None, sample: VectorSample, neighbours: int = 10
) -> NDArray[np.float32]:
    """Mean cosine distance of each row of the sample to its nearest other rows in the whole table, float32 (n,).

    Args:
        dataset: the table.
        modality: the modality whose vectors are compared.
        where: SQL filter; None takes all rows.
        sample: a sample of the table.
        neighbours: number of nearest rows; the row's own vector and equal pictures do not count.
    """
    condition = _has_vector(modality, where)
    blocks = scan_blocks(dataset, condition, modalities=[modality])
    everything = np.ones(dataset.count_rows(condition), bool)
    scores, places = search_all(blocks, modality, everything, sample.vectors, neighbours + 1)
    counted = (places >= 0) & (scores < 1 - 1e-5)
    sums = np.where(counted, 1 - scores, 0.0).sum(axis=1)
    return np.asarray(sums / np.maximum(counted.sum(axis=1), 1), np.float32)


def _has_vector(modality: Modality, where: str | None) -> str:
    return f"{VECTOR_COLUMNS[modality]} IS NOT NULL" + (f" AND ({where})" if where is not None else "")


@dataclass(frozen=True)
class Mismatched:
    """The pairs of a table with the lowest cosine of picture and caption.

    Attributes:
        rows: the rows of these pairs, the worst first, with their cosine as `score`.
        mean: mean cosine of picture and caption over all pairs.
        pairs: number of all pairs.
    """

    rows: pa.Table
    mean: float
    pairs: int


def least_alike(dataset: lance.LanceDataset, where: str | None, count: int) -> Mismatched:
    """The rows with the lowest cosine of their own picture and caption, found in one pass over the table.

    Args:
        dataset: the table, with both vectors in one space.
        where: SQL filter; None takes all rows.
        count: number of rows to find.
    """
    offsets, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
    total, pairs = 0.0, 0
    for block in scan_blocks(dataset, where, columns=[_OFFSET]):
        both = block.has["image"] & block.has["text"]
        cosines = np.einsum("nd,nd->n", block.vectors["image"], block.vectors["text"])[both]
        total, pairs = total + float(cosines.sum()), pairs + int(both.sum())
        offsets = np.concatenate([offsets, block.rows[_OFFSET].to_numpy().astype(np.int64)[both]])
        scores = np.concatenate([scores, cosines])
        worst = np.argsort(scores, kind="stable")[:count]
        offsets, scores = offsets[worst], scores[worst]
    columns = shown_columns(dataset)
    rows = dataset.take(offsets.tolist(), columns=columns) if len(offsets) else dataset.schema.empty_table()
    rows = rows.select(columns).append_column("score", pa.array(scores, pa.float32()))
    return Mismatched(rows, total / pairs if pairs else 0.0, pairs)
