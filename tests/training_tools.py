"""Corpora that can be learned, tables of given features, and runs for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from encoders.registry import describe
from pipelines.provenance import Provenance
from pipelines.storage import TableRef

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
_LATENT = 6
SHAPES = ("circle", "square", "bar")


def coloured_shape(colour: str, shape: str, size: int = 32) -> bytes:
    """A picture that its caption describes."""
    import io

    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    box = (6, 6, size - 6, size - 6) if shape != "bar" else (2, size // 2 - 3, size - 2, size // 2 + 3)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=COLOURS[colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def latent_table(path: Path, spec: str, n: int = 200, *, seed: int = 0, bad_row: int | None = None) -> TableRef:
    """A table such as `isthmus embed` makes with `spec`, of features with a hidden cause that heads can find."""
    card = describe(spec).card
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(n, _LATENT))
    columns: dict[str, Any] = {}
    for modality in ("image", "text"):
        dim = card.tower(modality).dim  # type: ignore[arg-type,union-attr]
        # The same mixing for every table of a seed's family, so that what was learned on one serves on another.
        mixing = np.random.default_rng(len(modality)).normal(size=(_LATENT, dim))
        vectors = cause @ mixing + 0.1 * rng.normal(size=(n, dim))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if bad_row is not None and modality == "image":
            vectors[bad_row] = np.nan
        flat = pa.array(vectors.astype(np.float32).ravel())
        columns[f"{modality}_vector"] = pa.FixedSizeListArray.from_arrays(flat, dim)
    rows = pa.table(
        {
            "row_id": [f"r{i}" for i in range(n)],
            "item_id": [f"i{i}" for i in range(n)],
            "caption": [f"thing {i}" for i in range(n)],
            "image_uri": pa.nulls(n, pa.string()),
            "n": list(range(n)),
            **columns,
        }
    )
    provenance = Provenance(encoder=card, modalities=("image", "text"))
    ref = TableRef.parse(str(path))
    lance.write_dataset(rows.replace_schema_metadata(provenance.to_metadata()), ref.uri, max_rows_per_file=64)
    return ref
