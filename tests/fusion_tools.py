"""The definition of a fused vector, written out plainly."""

from __future__ import annotations

import numpy as np

from pipelines.rows.contract import FUSED_VECTOR, IMAGE_VECTOR, ROW_ID, TEXT_VECTOR
from pipelines.store.storage import TableRef
from pipelines.tables.fusion_recipe import FusionRecipe
from pipelines.tables.opening import open_dataset
from pipelines.tables.provenance import Provenance


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def naive(image: np.ndarray | None, text: np.ndarray | None, made: FusionRecipe) -> np.ndarray | None:
    """The definition, for one row."""
    if image is None or text is None:
        alone = text if image is None else image
        return None if alone is None else unit(alone)
    total = made.image_weight / made.image_spread * unit(image)
    return unit(total + (1 - made.image_weight) / made.text_spread * unit(text))


def assert_fused(table: TableRef, *, lacking: frozenset[str] = frozenset()) -> FusionRecipe:
    """Assert that each row's fused vector follows the definition, with the recipe that the column carries."""
    dataset = open_dataset(table)
    made = Provenance.from_schema(dataset.schema).fused
    assert made is not None
    rows = dataset.to_table(columns=[ROW_ID, IMAGE_VECTOR, TEXT_VECTOR, FUSED_VECTOR]).to_pylist()
    assert rows
    for row in rows:
        image, text, found = (
            None if row[n] is None else np.array(row[n], np.float64) for n in (IMAGE_VECTOR, TEXT_VECTOR, FUSED_VECTOR)
        )
        wanted = None if row[ROW_ID] in lacking else naive(image, text, made)
        assert (found is None) == (wanted is None), row[ROW_ID]
        if found is not None and wanted is not None:
            np.testing.assert_allclose(found, wanted, atol=2e-3)  # half precision
    return made
