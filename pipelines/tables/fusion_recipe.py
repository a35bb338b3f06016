"""How the fused column of a table is made, kept on the column itself, so that the two cannot disagree."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pyarrow as pa

from pipelines.rows.contract import FUSED_VECTOR

# In the field's metadata: it comes and goes with the column, in the same commit.
_KEY = b"isthmus.fused"


@dataclass(frozen=True, kw_only=True)
class FusionRecipe:
    """What a row's fused vector is: unit(w · image / image_spread + (1 - w) · text / text_spread).

    Attributes:
        image_weight: w, the say of the picture, above 0 and below 1.
        image_spread: how far the table's image vectors lie around their mean; see `pipelines.vectors.fused.spread`.
        text_spread: the same for text vectors.
        image_fingerprint: of the tower that made the image vectors.
        text_fingerprint: of the tower that made the text vectors.
        space: in which both lie, and the fused vectors too.
    """

    image_weight: float
    image_spread: float
    text_spread: float
    image_fingerprint: str
    text_fingerprint: str
    space: str

    def field(self, kind: pa.DataType) -> pa.Field:
        """The column that is made so, of vectors of a type."""
        return pa.field(FUSED_VECTOR, kind, metadata={_KEY: json.dumps(asdict(self), sort_keys=True).encode()})

    @classmethod
    def from_schema(cls, schema: pa.Schema) -> FusionRecipe | None:
        """The recipe in a table's schema, None where the table has no fused column of ours."""
        if FUSED_VECTOR not in schema.names:
            return None
        raw = (schema.field(FUSED_VECTOR).metadata or {}).get(_KEY)
        return cls(**json.loads(raw)) if raw is not None else None
