"""Fused vectors from image and text vectors: pure functions of arrays, and of the rows that hold them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.rows.contract import FUSED_VECTOR, IMAGE_VECTOR, TEXT_VECTOR
from pipelines.tables.fusion_recipe import FusionRecipe
from pipelines.vectors.scan import normalise

# Vectors this close to their mean are all the same, and their spread is too small to divide by.
_LEAST_SPREAD = 1e-3
_SMALLEST_NORM = 1e-6


def spread(vectors: NDArray[np.floating]) -> float:
    """Root mean square distance of unit vectors (n, dim) from their mean; 0 for fewer than two vectors.

    >>> spread(np.eye(2))
    0.7071067811865476
    """
    if len(vectors) < 2:
        return 0.0
    found = np.asarray(vectors, np.float64)
    return float(np.sqrt(np.mean(np.sum((found - found.mean(axis=0)) ** 2, axis=1))))


def levels(image_vectors: NDArray[np.floating], text_vectors: NDArray[np.floating]) -> tuple[float, float]:
    """The spreads by which image and text vectors are divided; both 1 if either is too small to divide by.

    Args:
        image_vectors: (n, dim), unit vectors of pictures.
        text_vectors: (m, dim), unit vectors of captions.
    """
    found = spread(image_vectors), spread(text_vectors)
    return found if min(found) > _LEAST_SPREAD else (1.0, 1.0)


def fuse(
    image_vectors: NDArray[np.float32], text_vectors: NDArray[np.float32], recipe: FusionRecipe
) -> NDArray[np.float32]:
    """unit(w · image / image_spread + (1 - w) · text / text_spread), row by row.

    If a row has only one of the two vectors, the result is that vector. If the two cancel out, it is the one with the
    greater weight.

    Args:
        image_vectors: (n, dim), unit vectors; 0 for rows without one.
        text_vectors: (n, dim), unit vectors; 0 for rows without one.
        recipe: the image weight w and the two spreads.

    Returns:
        (n, dim), unit vectors; 0 for rows without either vector.
    """
    images = image_vectors * np.float32(recipe.image_weight / recipe.image_spread)
    texts = text_vectors * np.float32((1 - recipe.image_weight) / recipe.text_spread)
    total = images + texts
    sizes = [np.linalg.norm(part, axis=1) for part in (images, texts)]
    norms = np.linalg.norm(total, axis=1)
    cancelled = norms <= _SMALLEST_NORM * (sizes[0] + sizes[1])
    total[cancelled] = np.where((sizes[0] >= sizes[1])[:, None], images, texts)[cancelled]
    norms = np.where(cancelled, np.maximum(*sizes), norms)
    return np.asarray(total / np.where(norms > 0, norms, 1.0)[:, None], np.float32)


def fused_column(rows: pa.Table, recipe: FusionRecipe, kind: pa.DataType) -> pa.FixedSizeListArray:
    """The fused vectors of some rows; null for rows without either vector.

    Args:
        rows: rows with the columns `image_vector` and `text_vector`.
        recipe: the image weight and the two spreads.
        kind: Arrow type of the result, FixedSizeList<float16 | float32>[dim].
    """
    (images, has_image), (texts, has_text) = normalise(rows[IMAGE_VECTOR]), normalise(rows[TEXT_VECTOR])
    dtype = np.float16 if pa.types.is_float16(kind.value_type) else np.float32
    flat = fuse(images, texts, recipe).astype(dtype).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind, mask=pa.array(~(has_image | has_text)))


def with_fused(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows to be written, with their fused vectors if the table has such a column.

    Args:
        rows: rows with the columns of `schema`.
        schema: schema of the table, whose metadata holds the recipe.
    """
    recipe = FusionRecipe.from_schema(schema)
    if recipe is None:
        return rows
    field = schema.field(FUSED_VECTOR)
    return rows.set_column(schema.get_field_index(FUSED_VECTOR), field, fused_column(rows, recipe, field.type))
