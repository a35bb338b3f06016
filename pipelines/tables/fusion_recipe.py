"""How a table's fused column is computed. The recipe is stored on the column itself, so the two cannot disagree."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pyarrow as pa

from pipelines.rows.contract import FUSED_VECTOR

# A key of the field's metadata: the recipe is added and removed together with the column, in the same commit.
_KEY = b"isthmus.fused"


@dataclass(frozen=True, kw_only=True)
class FusionRecipe:
    """The formula of a row's fused vector: unit(w · image / image_spread + (1 - w) · text / text_spread).

    Attributes:
        image_weight: w, the weight of the picture, above 0 and below 1.
        image_spread: spread of the table's image vectors around their mean; see `pipelines.vectors.fused.spread`.
        text_spread: spread of the table's text vectors around their mean.
        image_fingerprint: fingerprint of the tower that made the image vectors.
        text_fingerprint: fingerprint of the tower that made the text vectors.
        space: name of the embedding space that the image, text and fused vectors share.
    """

    image_weight: float
    image_spread: float
    text_spread: float
    image_fingerprint: str
    text_fingerprint: str
    space: str

    def field(self, kind: pa.DataType) -> pa.Field:
        """The Arrow field of the fused column, with this recipe in its metadata.

        Args:
            kind: the type of the vectors.
        """
        return pa.field(FUSED_VECTOR, kind, metadata={_KEY: json.dumps(asdict(self), sort_keys=True).encode()})

    @classmethod
    def from_schema(cls, schema: pa.Schema) -> FusionRecipe | None:
        """The recipe in a table's schema; None if the table has no fused column made by isthmus."""
        if FUSED_VECTOR not in schema.names:
            return None
        raw = (schema.field(FUSED_VECTOR).metadata or {}).get(_KEY)
        return cls(**json.loads(raw)) if raw is not None else None
