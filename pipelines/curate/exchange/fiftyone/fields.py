"""The fields of FiftyOne for the columns of a table, and the document that describes them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

METADATA = "metadata.json"
# Later releases migrate datasets of this version; the format of fields has not changed since.
_FORMAT_VERSION = "1.0.0"
_FTYPE = "fiftyone.core.fields."
_OF_EACH_DATASET = ("id", "filepath", "tags", "metadata", "created_at", "last_modified_at")
# Attributes of FiftyOne's samples, which a field would hide or be hidden by.
_ATTRIBUTES = ("pk", "filename", "media_type", "media_reference", "dataset", "dataset_id", "field_names", "get_field")
_TAKEN = frozenset({*_OF_EACH_DATASET, *_ATTRIBUTES, "from_dict"})
_IMAGE_METADATA = {
    "size_bytes": "IntField",
    "mime_type": "StringField",
    "width": "IntField",
    "height": "IntField",
    "num_channels": "IntField",
}


@dataclass(frozen=True, kw_only=True)
class Field:
    """A column of the table as a field of FiftyOne.

    Attributes:
        column: name of the column in the table.
        name: name of the field in FiftyOne.
        ftype: class of the field.
        subfield: class of the items, if the field is a list with items of one class.
    """

    column: str
    name: str
    ftype: str
    subfield: str | None = None


def plan_fields(schema: pa.Schema, vectors: Sequence[str]) -> tuple[list[Field], list[str]]:
    """A field for each column, and the columns for which FiftyOne has no field: bytes, such as thumbnails.

    Args:
        schema: schema of the rows.
        vectors: its vector columns.
    """
    fields: list[Field] = []
    left_out: list[str] = []
    names = _TAKEN | {name for name in schema.names if clean(name, _TAKEN) == name}
    for column in schema:
        found = ("VectorField", None) if column.name in vectors else field_type(column.type)
        if found is None:
            left_out.append(column.name)
            continue
        name = column.name if clean(column.name, _TAKEN) == column.name else clean(column.name, names)
        names |= {name}
        fields.append(Field(column=column.name, name=name, ftype=found[0], subfield=found[1]))
    return fields, left_out


def clean(name: str, taken: Collection[str]) -> str:
    """A name that MongoDB and FiftyOne accept: without `.` and `$`, without a leading `_`, and not in `taken`.

    >>> clean("_size.w", ["size_w"])
    'size_w_'
    """
    name = name.replace(".", "_").replace("$", "_").lstrip("_") or "field"
    while name in taken:
        name += "_"
    return name


def field_type(type: pa.DataType) -> tuple[str, str | None] | None:
    """The class of the field for an Arrow type and, for lists, the class of the items; None if there is none.

    >>> field_type(pa.list_(pa.string()))
    ('ListField', 'StringField')
    """
    kinds = pa.types
    if kinds.is_dictionary(type):
        return field_type(type.value_type)
    if kinds.is_map(type):
        return ("ListField", None) if field_type(type.key_type) and field_type(type.item_type) else None
    if kinds.is_list(type) or kinds.is_large_list(type) or kinds.is_fixed_size_list(type):
        items = field_type(type.value_type)
        return ("ListField", items[0]) if items else None
    if kinds.is_struct(type):
        return ("DictField", None) if all(field_type(part.type) for part in type) else None
    scalar = next((name for is_kind, name in _SCALARS if is_kind(type)), None)
    return (scalar, None) if scalar else None


_SCALARS = (
    (pa.types.is_string, "StringField"),
    (pa.types.is_large_string, "StringField"),
    (pa.types.is_boolean, "BooleanField"),
    (pa.types.is_integer, "IntField"),
    (pa.types.is_floating, "FloatField"),
    (pa.types.is_decimal, "FloatField"),
    (pa.types.is_date, "DateField"),
    (pa.types.is_timestamp, "DateTimeField"),
    (pa.types.is_time, "StringField"),
    (pa.types.is_duration, "StringField"),
    (pa.types.is_null, "StringField"),
)


def document(name: str, fields: Sequence[Field], info: dict[str, Any]) -> bytes:
    """The dataset's document, the content of `metadata.json`.

    Args:
        name: name of the dataset.
        fields: fields of the table's columns; the fields that every dataset has are added.
        info: what FiftyOne shows as the dataset's info.
    """
    metadata = [_described(key, ftype) for key, ftype in _IMAGE_METADATA.items()]
    own = [
        _described("id", "ObjectIdField", db_field="_id"),
        _described("filepath", "StringField"),
        _described("tags", "ListField", subfield=f"{_FTYPE}StringField"),
        _described(
            "metadata",
            "EmbeddedDocumentField",
            embedded_doc_type="fiftyone.core.metadata.ImageMetadata",
            fields=metadata,
        ),
        _described("_media_type", "StringField"),
        _described("_rand", "FloatField"),
        _described("_dataset_id", "ObjectIdField"),
        _described("created_at", "DateTimeField", read_only=True),
        _described("last_modified_at", "DateTimeField", read_only=True),
    ]
    columns = [
        _described(
            field.name,
            field.ftype,
            subfield=f"{_FTYPE}{field.subfield}" if field.subfield else None,
            description=f"column {field.column!r} of the table" if field.name != field.column else None,
        )
        for field in fields
    ]
    dataset = {
        "name": name,
        "version": _FORMAT_VERSION,
        "media_type": "image",
        "tags": [],
        "info": info,
        "sample_fields": own + columns,
        "frame_fields": [],
    }
    return json.dumps(dataset, indent=1).encode()


def _described(name: str, ftype: str, **more: Any) -> dict[str, Any]:
    """A field described as in FiftyOne's own exports."""
    plain: dict[str, Any] = {
        "name": name,
        "ftype": f"{_FTYPE}{ftype}",
        "embedded_doc_type": None,
        "subfield": None,
        "fields": [],
        "db_field": name,
        "description": None,
        "info": None,
        "read_only": False,
    }
    return plain | more
