"""Compares a query with a few rows one by one, without an index or a scan of the whole column.

This serves filters that leave few rows. An index answers badly there, because the nearest rows that it knows are
filtered away. An exact search would read every vector of the column and drop most of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.rows.contract import ROW_ID

if TYPE_CHECKING:
    import lance

_OFFSET, _SCORE = "_rowoffset", "_score"
_CHUNK = 4_096


@dataclass
class FewRows:
    """Some rows of a table, ranked by their cosine to a vector.

    Attributes:
        dataset: the table.
        column: a vector column.
        vector: (dim,) the query; any length except 0.
        offsets: (n,) int64, offsets of the rows.
    """

    dataset: lance.LanceDataset
    column: str
    vector: NDArray[np.float32]
    offsets: NDArray[np.int64]

    def best(self, k: int, columns: list[str], score: str) -> pa.Table:
        """The best rows, best first. Rows without a vector are left out.

        Args:
            k: largest number of rows.
            columns: columns to return.
            score: name of the column of cosines, which becomes the second column.
        """
        offsets, scores = self._ranked
        rows = self.dataset.take(offsets[:k], columns=columns)
        return rows.add_column(1, score, pa.array(scores[:k]))

    @cached_property
    def _ranked(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Offsets and scores of the rows that have a vector, ordered by score and then by id."""
        query = self.vector / np.linalg.norm(self.vector)
        pieces = [self._compare(self.offsets[i : i + _CHUNK], query) for i in range(0, len(self.offsets), _CHUNK)]
        if not pieces:
            return np.zeros(0, np.int64), np.zeros(0)
        ranked = pa.concat_tables(pieces).sort_by([(_SCORE, "descending"), (ROW_ID, "ascending")])
        return ranked[_OFFSET].to_numpy(), ranked[_SCORE].to_numpy()

    def _compare(self, offsets: NDArray[np.int64], query: NDArray[np.float32]) -> pa.Table:
        rows = self.dataset.take(offsets, columns=[ROW_ID, self.column])
        is_there = rows[self.column].is_valid()
        rows, offsets = rows.filter(is_there), offsets[is_there.to_numpy()]
        flat = rows[self.column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = flat.astype(np.float32, copy=False).reshape(-1, len(query))
        norms = np.linalg.norm(vectors, axis=1)
        # Row by row: in a matrix product equal vectors need not get equal scores, and ties would break at random.
        scores = (vectors * query).sum(axis=1, dtype=np.float64) / np.where(norms > 0, norms, 1.0)
        return pa.table({ROW_ID: rows[ROW_ID], _OFFSET: offsets, _SCORE: scores})


def few_matches(dataset: lance.LanceDataset, condition: str, most: int) -> NDArray[np.int64] | None:
    """Offsets of the rows that meet a condition; None for more than `most`. Reads only the condition's columns."""
    scanner = dataset.scanner(columns=[_OFFSET], filter=condition, limit=most + 1)
    offsets = np.asarray(scanner.to_table()[_OFFSET].to_numpy(), np.int64)
    return offsets if len(offsets) <= most else None
