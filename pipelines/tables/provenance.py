"""The provenance of a table's vectors, stored in the table's schema metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pyarrow as pa

from encoders.protocol import EncoderCard, Modality, TowerCard
from pipelines.rows.contract import FUSED_VECTOR, VECTOR_COLUMNS
from pipelines.tables.fusion_recipe import FusionRecipe

METADATA_KEY = b"isthmus"
_LIBRARIES = ("isthmus", "torch", "transformers", "ray", "lancedb", "pylance", "pyarrow", "pillow", "openvino")


class EncoderMismatchError(ValueError):
    """Vectors of different encoders would be mixed or compared."""


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a vector or a table; those not installed are left out."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Which encoder made the vectors of a table, and with which settings.

    Attributes:
        encoder: the encoder's card.
        modalities: the modalities that were embedded (a subset of the encoder's).
        settings: precision, preprocessing mode, text policy, vector type and library versions; for information.
        fused: how the fused column was computed from the others; None if there is none. It is stored on that column.
    """

    encoder: EncoderCard
    modalities: tuple[Modality, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    fused: FusionRecipe | None = None

    def tower(self, modality: Modality) -> TowerCard | None:
        """The tower that made the vector column of `modality`; None if there is no such column."""
        return self.encoder.tower(modality) if modality in self.modalities else None

    def vector_columns(self) -> dict[str, TowerCard]:
        """Vector column name → the tower that made it. The fused column is absent, because no tower made it."""
        towers = {m: self.encoder.tower(m) for m in self.modalities}
        return {VECTOR_COLUMNS[m]: tower for m, tower in towers.items() if tower is not None}

    def spaces(self) -> dict[str, str]:
        """Every searchable column → the name of its embedding space. The fused column comes last."""
        found = {column: tower.space for column, tower in self.vector_columns().items()}
        return found | ({FUSED_VECTOR: self.fused.space} if self.fused is not None else {})

    def to_metadata(self) -> dict[bytes, bytes]:
        """Schema metadata that holds the provenance, except for the fusion recipe, which is stored on its column."""
        data = {"encoder": self.encoder.to_dict(), "modalities": list(self.modalities), "settings": self.settings}
        return {METADATA_KEY: json.dumps(data, sort_keys=True).encode()}

    @classmethod
    def from_schema(cls, schema: pa.Schema, table: str = "table") -> Provenance:
        """The provenance in a table's schema.

        Raises:
            ValueError: the table was not made by `isthmus embed`.
        """
        raw = (schema.metadata or {}).get(METADATA_KEY)
        if raw is None:
            raise ValueError(f"{table}: holds no isthmus provenance; it was not made by `isthmus embed`")
        data = json.loads(raw)
        return cls(
            encoder=EncoderCard.from_dict(data["encoder"]),
            modalities=tuple(data["modalities"]),
            settings=data["settings"],
            fused=FusionRecipe.from_schema(schema),
        )

    def check_same_encoder(self, other: EncoderCard, table: str) -> None:
        """Reject an encoder whose towers differ from those that made the table.

        Raises:
            EncoderMismatchError: a tower differs; names both encoders.
        """
        for modality in self.modalities:
            mine, theirs = self.encoder.tower(modality), other.tower(modality)
            if theirs is None or mine is None or mine.fingerprint != theirs.fingerprint:
                raise EncoderMismatchError(
                    f"{table}: its {VECTOR_COLUMNS[modality]} was made by {self.encoder.name!r} "
                    f"(fingerprint {mine.fingerprint if mine else None}), not by {other.name!r} "
                    f"({theirs.fingerprint if theirs else 'no ' + modality + ' tower'}); "
                    f"use --encoder {self.encoder.spec}, or another table"
                )
