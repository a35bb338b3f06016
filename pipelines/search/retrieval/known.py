"""Facts about a version of a table, read once. Reading them for each query would cost as much as the search."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.rows.contract import CAPTION, IMAGE_URI, THUMBNAIL
from pipelines.search.indexing.parameters import QueryParameters, read_parameters
from pipelines.search.retrieval.calibration import Calibration, read_calibration
from pipelines.search.retrieval.composing import sample_gallery

if TYPE_CHECKING:
    import lance


class Known:
    """Facts about one version of a table. Threads may share it; at worst a fact is read twice.

    Attributes:
        dataset: the dataset, at that version.
    """

    def __init__(self, dataset: lance.LanceDataset) -> None:
        self.dataset = dataset
        self._parameters: dict[str, QueryParameters | None] = {}
        self._calibrations: dict[tuple[str, str], Calibration | None] = {}
        self._galleries: dict[str, NDArray[np.float64]] = {}

    @cached_property
    def names(self) -> list[str]:
        """The names of all columns."""
        return list(self.dataset.schema.names)

    @property
    def picture_columns(self) -> list[str]:
        """The columns of a row that a page shows: caption, picture and, if there are any, thumbnail."""
        return [name for name in (CAPTION, IMAGE_URI, THUMBNAIL) if name in self.names]

    @cached_property
    def has_text_index(self) -> bool:
        """Whether the captions have a full-text index."""
        return any(list(index.field_names) == [CAPTION] for index in self.dataset.describe_indices())

    def parameters(self, column: str) -> QueryParameters | None:
        """The query parameters of a vector column's index; None if it has none."""
        if column not in self._parameters:
            self._parameters[column] = read_parameters(self.dataset, column)
        return self._parameters[column]

    def calibration(self, column: str, source: str) -> Calibration | None:
        """The curve from scores of a kind of query to probabilities; None if there is none."""
        if (column, source) not in self._calibrations:
            self._calibrations[column, source] = read_calibration(self.dataset, column, source)
        return self._calibrations[column, source]

    def gallery(self, column: str) -> NDArray[np.float64]:
        """A sample of a column's vectors, (n, dim)."""
        if column not in self._galleries:
            self._galleries[column] = sample_gallery(self.dataset, column)
        return self._galleries[column]
