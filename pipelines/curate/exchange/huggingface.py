"""Exports a table as a folder that `datasets.load_dataset` reads and that the Hugging Face hub shows directly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from encoders.images.kinds import container
from pipelines.rows.contract import IMAGE_URI
from pipelines.sources.locate import read_images
from pipelines.store.storage import Storage
from pipelines.tables.provenance import Provenance

if TYPE_CHECKING:
    from datasets import Features

CARD = "README.md"
PICTURE_COLUMN = "image"
_BYTES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def file_name(number: int) -> str:
    """The path of a file of rows within the folder."""
    return f"data/train-{number:05d}.parquet"


def add_pictures(part: pa.Table, storage: Storage) -> tuple[pa.Table, int]:
    """Rows with their pictures' bytes in a column `image`, and the number of pictures that could not be read.

    Args:
        part: rows with `image_uri`.
        storage: how to reach the corpus.

    Raises:
        ValueError: the rows already have a column `image`.
    """
    if PICTURE_COLUMN in part.column_names:
        raise ValueError(f"pictures: the table already has a column {PICTURE_COLUMN!r}; export it without --pictures")
    uris = part[IMAGE_URI].to_pylist()
    wanted = list(dict.fromkeys(uri for uri in uris if uri))
    # Read only pictures: a table's rows may name any file of this machine.
    read = {
        uri: found
        for uri, found in zip(wanted, read_images(wanted, storage), strict=True)
        if isinstance(found, bytes) and container(found)
    }
    shown = [{"bytes": read[uri], "path": None} if uri in read else None for uri in uris]
    missing = sum(1 for uri, picture in zip(uris, shown, strict=True) if uri and picture is None)
    return part.append_column(PICTURE_COLUMN, pa.array(shown, _BYTES)), missing


def with_features(part: pa.Table) -> pa.Table:
    """Rows whose schema tells `datasets` which column holds pictures.

    Raises:
        ModuleNotFoundError: the extra `huggingface` is not installed.
    """
    features = _features(part.schema)
    known = features.arrow_schema.metadata or {}
    return part.replace_schema_metadata({**(part.schema.metadata or {}), **known})


def _features(schema: pa.Schema) -> Features:
    try:
        from datasets import Features, Image
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "export --format huggingface needs more packages: pip install 'isthmus[huggingface]'"
        ) from None
    # Drop the schema's metadata: `datasets` would apply the metadata of another export to these columns.
    features = Features.from_arrow_schema(schema.remove_metadata())
    if schema.get_field_index(PICTURE_COLUMN) >= 0 and schema.field(PICTURE_COLUMN).type == _BYTES:
        features[PICTURE_COLUMN] = Image()
    return features


def card(name: str, provenance: Provenance, version: int, rows: int, vectors: dict[str, int]) -> str:
    """The dataset's card, which also tells `datasets` where its files are.

    Args:
        name: name of the table.
        provenance: provenance of its vectors.
        version: version of the table.
        rows: number of exported rows.
        vectors: the vector columns, with their dimensions.
    """
    columns = "\n".join(f"* `{column}`: {dim} dimensions, of length 1" for column, dim in vectors.items())
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---

# {name}

{rows:,} rows of version {version} of the table, with vectors of the encoder `{provenance.encoder.name}`:

{columns}
"""
