"""Which rows of a table are queries and which are in the gallery: codes in numpy, vectors streamed from the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.rows.contract import CAPTION, IMAGE_VECTOR, ITEM_ID, ROW_ID, TEXT_VECTOR
from pipelines.tables.filters import check_filter
from pipelines.tables.joins import hashed
from pipelines.tables.provenance import Provenance
from pipelines.tables.splitting import OFFSET
from pipelines.train.finetuning.loading import as_matrix

if TYPE_CHECKING:
    import lance

Index = NDArray[np.int64]
_HAS_IMAGE, _HAS_TEXT = "_has_image", "_has_text"
_IMAGE = f"{IMAGE_VECTOR} IS NOT NULL"
_TEXT = f"{CAPTION} IS NOT NULL AND {TEXT_VECTOR} IS NOT NULL"
HAS_BOTH, _EITHER = f"{_IMAGE} AND {_TEXT}", f"{_IMAGE} OR ({_TEXT})"


@dataclass(frozen=True, kw_only=True)
class EvaluatedRows:
    """Rows of a table, in its order: queries have both vectors, the others at least one.

    Attributes:
        offset: (n,), offsets of the rows in the table.
        item: (n,), code of the picture.
        text: (n,), code of the caption.
        relevant: (n,), code; rows with equal codes answer each other.
        asks: bool (n,), true for queries, false for rows that are only in the gallery.
        has_image: bool (n,), true for rows with an image vector.
        has_text: bool (n,), true for rows with a caption and its vector.
        row_id: (n,), strings.
        slices: values (n,) of the columns to slice by, by name.
    """

    offset: Index
    item: Index
    text: Index
    relevant: Index
    asks: NDArray[np.bool_]
    has_image: NDArray[np.bool_]
    has_text: NDArray[np.bool_]
    row_id: pa.Array
    slices: dict[str, pa.Array]

    def __len__(self) -> int:
        return len(self.offset)


def read_rows(
    dataset: lance.LanceDataset,
    *,
    where: str | None,
    gallery_where: str | None,
    relevant: str,
    slices: tuple[str, ...],
    table: str,
) -> EvaluatedRows:
    """The rows that `where` selects as queries, and those that `gallery_where` adds to the gallery.

    Raises:
        ValueError: the table lacks a column or cannot apply a filter, its vectors cannot be compared, or no row is
            selected.
    """
    check_comparable(dataset, table)
    for name in (relevant, *slices):
        if name not in dataset.schema.names:
            raise ValueError(f"table {table}: has no column {name!r}; columns are {', '.join(dataset.schema.names)}")
    for condition in (where, gallery_where):
        if condition is not None:
            check_filter(condition, dataset)
    asking = _scan(dataset, HAS_BOTH, where, relevant, slices)
    if asking.num_rows == 0:
        raise ValueError(f"table {table}: no row with a picture and a caption" + (f" where {where}" if where else ""))
    found = asking
    if gallery_where is not None:
        others = _scan(dataset, _EITHER, gallery_where, relevant, slices)
        new = ~np.isin(others[OFFSET].to_numpy(), asking[OFFSET].to_numpy())
        found = pa.concat_tables([asking, others.filter(pa.array(new))]).sort_by(OFFSET)
    codes = {name: hashed(found[name]) for name in dict.fromkeys((ITEM_ID, CAPTION, relevant))}
    # A row without a value answers only for its own item, not for all other rows without one.
    unknown = found[relevant].is_null().to_numpy()
    codes[relevant] = np.where(unknown, codes[ITEM_ID], codes[relevant])
    return EvaluatedRows(
        offset=found[OFFSET].to_numpy().astype(np.int64),
        item=codes[ITEM_ID],
        text=codes[CAPTION],
        relevant=codes[relevant],
        asks=np.isin(found[OFFSET].to_numpy(), asking[OFFSET].to_numpy()),
        has_image=found[_HAS_IMAGE].to_numpy(),
        has_text=found[_HAS_TEXT].to_numpy(),
        row_id=found[ROW_ID].combine_chunks(),
        slices={name: found[name].combine_chunks() for name in slices},
    )


def check_comparable(dataset: lance.LanceDataset, table: str) -> None:
    """Refuse a table whose pictures and captions are in different spaces.

    Raises:
        ValueError: the table lacks one kind of vectors, or the two are in different spaces.
    """
    provenance = Provenance.from_schema(dataset.schema, table)
    image, text = provenance.tower("image"), provenance.tower("text")
    if image is None or text is None:
        raise ValueError(f"table {table}: holds {' and '.join(provenance.modalities)} vectors; both kinds are needed")
    if image.space != text.space:
        raise ValueError(
            f"table {table}: the pictures and the captions of {provenance.encoder.name!r} are in different spaces and "
            "cannot be compared; train heads for them with `isthmus finetune`"
        )


def read_vectors(dataset: lance.LanceDataset, offsets: Index, column: str) -> NDArray[np.float32]:
    """Vectors float32 (n, dim) of the rows at some offsets, in the order given."""
    return as_matrix(dataset.take(offsets.tolist(), columns=[column])[column])


class Gallery:
    """Vectors of some rows of a table, in blocks; can be iterated repeatedly by calling it."""

    def __init__(self, dataset: lance.LanceDataset, offsets: Index, column: str, block_rows: int) -> None:
        self._dataset, self._offsets, self._column, self._rows = dataset, offsets, column, block_rows

    def __len__(self) -> int:
        return len(self._offsets)

    def __call__(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields (place where a block starts, its vectors float32 (rows, dim)), in order."""
        for start in range(0, len(self._offsets), self._rows):
            yield start, read_vectors(self._dataset, self._offsets[start : start + self._rows], self._column)


def first_of(codes: Index) -> tuple[Index, Index]:
    """The rows where each value occurs first, ascending; and for each row, the entry of its value among these.

    >>> [found.tolist() for found in first_of(np.array([7, 3, 7]))]
    [[0, 1], [0, 1, 0]]
    """
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return first[order].astype(np.int64), place[inverse]


def gallery_of(codes: Index, has: NDArray[np.bool_]) -> tuple[Index, Index]:
    """The row that represents each value in a gallery, ascending; and for each row the entry of its value, or -1.

    Args:
        codes: (n,), the value of each row.
        has: bool (n,), whether the row may represent its value.

    >>> [found.tolist() for found in gallery_of(np.array([7, 3, 7]), np.array([False, True, True]))]
    [[1, 2], [-1, 0, 1]]
    """
    places = np.flatnonzero(has)
    kept, entry = first_of(codes[places])
    entry_of = np.full(len(codes), -1, np.int64)
    entry_of[places] = entry
    return places[kept], entry_of


def _scan(dataset: lance.LanceDataset, has: str, where: str | None, relevant: str, slices: tuple[str, ...]) -> pa.Table:
    columns = {name: f"`{name}`" for name in (ROW_ID, ITEM_ID, CAPTION, relevant, *slices)}
    columns |= {OFFSET: OFFSET, _HAS_IMAGE: _IMAGE, _HAS_TEXT: _TEXT}
    condition = f"({has})" + (f" AND ({where})" if where else "")
    return dataset.scanner(columns=columns, filter=condition).to_table()
