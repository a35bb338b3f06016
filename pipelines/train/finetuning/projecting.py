"""Projects a table of a frozen tower's features through a dual tower's heads into a new table, without any backbone.

Running the backbones on a large corpus takes hours; this takes minutes. It is the way to try trained heads on the whole
corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from encoders.protocol import Modality
from encoders.registry import describe
from pipelines.rows.contract import VECTOR_COLUMNS, vector_type
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_dataset, translate
from pipelines.tables.provenance import Provenance, library_versions

if TYPE_CHECKING:
    import lance

_BATCH_ROWS = 4_096
_SOURCE_KEY = "projected_from"


def project_table(features: TableRef, encoder: str, out: TableRef) -> int:
    """Write the table that embedding the same corpus with `encoder` would give.

    Args:
        features: a table whose vectors are the features that the heads of `encoder` take.
        encoder: directory of a dual tower with untuned backbones.
        out: the new table; an existing one that was made from the same version by the same encoder is kept.

    Returns:
        The version of `out`.

    Raises:
        ValueError: the features are not those of the encoder's backbones, or `out` is another kind of table.
        OSError: the store cannot be read or written.
    """
    import lance

    source = open_dataset(features)
    model = _heads(encoder, source, features)
    schema = _schema(source, encoder, features)
    existing = open_dataset(out, missing_ok=True)
    if existing is not None:
        if Provenance.from_schema(existing.schema, str(out)).settings.get(_SOURCE_KEY) is None:
            raise ValueError(f"table {out}: already exists and was not made from features; give another name")
        if (existing.schema.metadata or {}) == schema.metadata:
            return int(existing.version)
    try:
        written = lance.write_dataset(
            pa.RecordBatchReader.from_batches(schema, _batches(source, schema, model)),
            out.uri,
            schema=schema,
            mode="create" if existing is None else "overwrite",
            storage_options=out.options,
        )
    except OSError as error:
        raise translate(error, out.uri) from error
    return int(written.version)


def _heads(encoder: str, source: lance.LanceDataset, features: TableRef) -> Any:
    """The model whose heads take the table's vectors.

    Raises:
        ValueError: the table's vectors are not the features of the model's backbones.
    """
    from encoders.training.models import open_model

    model = open_model(encoder)
    provenance = Provenance.from_schema(source.schema, str(features))
    for modality in provenance.modalities:
        part = model.frozen_part(modality, head_trains=True)
        tower = provenance.tower(modality)
        if part is None or tower is None or part.fingerprint != tower.fingerprint:
            raise ValueError(
                f"table {features}: its {modality} vectors are not the features that {encoder!r} takes"
                + ("; its backbone was tuned" if part is None else "")
                + "; embed the corpus itself with this encoder"
            )
    return model.eval()


def _schema(source: lance.LanceDataset, encoder: str, features: TableRef) -> pa.Schema:
    card = describe(encoder).card
    provenance = Provenance.from_schema(source.schema, str(features))
    schema = source.schema
    for modality in provenance.modalities:
        name = VECTOR_COLUMNS[modality]
        tower = card.tower(modality)
        assert tower is not None
        schema = schema.set(schema.get_field_index(name), pa.field(name, vector_type(tower.dim, "float32")))
    settings = {**provenance.settings, "libraries": library_versions(), _SOURCE_KEY: f"{features}@{source.version}"}
    return schema.with_metadata(
        Provenance(encoder=card, modalities=provenance.modalities, settings=settings).to_metadata()
    )


def _batches(source: lance.LanceDataset, schema: pa.Schema, model: Any) -> Iterator[pa.RecordBatch]:
    modalities: dict[str, Modality] = {VECTOR_COLUMNS["image"]: "image", VECTOR_COLUMNS["text"]: "text"}
    for batch in source.to_batches(batch_size=_BATCH_ROWS):
        columns = [
            _through_head(batch[field.name], field.type, model, modalities[field.name])
            if field.name in modalities
            else batch[field.name]
            for field in schema
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _through_head(column: pa.Array, kind: pa.DataType, model: Any, modality: Modality) -> pa.Array:
    import torch

    there = column.is_valid().to_numpy(zero_copy_only=False)
    flat = column.drop_null().flatten().to_numpy(zero_copy_only=False)
    features = torch.from_numpy(flat.reshape(int(there.sum()), -1).astype(np.float32))
    with torch.inference_mode():
        head = model.image if modality == "image" else model.text
        found = torch.nn.functional.normalize(head({f"{modality}_features": features}), dim=1).numpy()
    values = np.zeros((len(there), kind.list_size), np.float32)
    values[there] = found
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=kind, mask=pa.array(~there))
