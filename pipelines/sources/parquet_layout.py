"""Which column of a Parquet corpus plays which role, and what passes through with which type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from pipelines.contract import Columns
from pipelines.sources.records import check_passthrough

ImageKind = Literal["bytes", "struct", "uri", "none"]
_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "picture")
_URI_NAMES = ("image_path", "path", "image_uri", "uri", "url", "filepath", "file_name", "filename", "image")
_CAPTION_NAMES = ("caption", "captions", "text", "txt", "sentence", "sentences", "alt", "TEXT")
_IMAGE_PATH = "image_path"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Roles and pass-through columns of a Parquet corpus.

    Attributes:
        image: the picture's column, of bytes, a `{bytes, path}` struct, or a path.
        image_kind: which of these.
        caption: the caption's column.
        key: the key's column.
        item: the item's column.
        passthrough: the fields that go to the table.
        partitions: those of them that come from `key=value` folders.
        physical: columns to read from a file, where it has them.
    """

    image: str | None
    image_kind: ImageKind
    caption: str | None
    key: str | None
    item: str | None
    passthrough: pa.Schema
    partitions: tuple[str, ...]
    physical: tuple[str, ...]


def make_layout(schema: pa.Schema, partitions: pa.Schema, columns: Columns, corpus: str) -> Layout:
    """The layout of a corpus.

    Args:
        schema: the unified schema of the files.
        partitions: fields of the hive partitions.
        columns: roles that were named.
        corpus: for messages.

    Raises:
        ValueError: a named column is missing or of the wrong type, or a name is kept by isthmus.
    """
    everything = pa.schema([*schema, *(f for f in partitions if f.name not in schema.names)])
    for role, name in vars(columns).items():
        if name is not None and name not in everything.names:
            there = ", ".join(everything.names)
            raise ValueError(f"corpus {corpus}: no column {name!r} (--columns.{role}); columns are {there}")
    image, kind = _image_column(schema, columns, corpus)
    caption = columns.caption or _first(schema, _CAPTION_NAMES, _is_text, without=image)
    if caption is not None and not _is_text(schema.field(caption).type):
        raise ValueError(f"corpus {corpus}: caption column {caption!r} is {schema.field(caption).type}, not strings")
    hidden = {caption, None}
    if kind != "none":
        hidden.add(image)
    roles = {name for name in (columns.key, columns.item) if name in ("row_id", "item_id")}
    passthrough = [pa.field(f.name, _plain(f.type)) for f in everything if f.name not in hidden | roles]
    check_passthrough([field.name for field in passthrough], corpus)
    if kind in ("struct", "uri") and _IMAGE_PATH not in (field.name for field in passthrough):
        passthrough.append(pa.field(_IMAGE_PATH, pa.string()))
    return Layout(
        image=image,
        image_kind=kind,
        caption=caption,
        key=columns.key,
        item=columns.item,
        passthrough=pa.schema(passthrough),
        partitions=tuple(partitions.names),
        physical=tuple(schema.names),
    )


def unify(schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """One schema for all files: null gives way, integers and floats widen, missing columns are null.

    Args:
        schemas: (uri, schema) of each file.

    Raises:
        ValueError: names the column, the file and both types.
    """
    fields: dict[str, pa.Field] = {}
    for uri, schema in schemas:
        for new in schema:
            plain = pa.field(new.name, _plain(new.type))
            old = fields.get(new.name)
            if old is None or old.type == plain.type:
                fields.setdefault(new.name, plain)
                continue
            try:
                merged = pa.unify_schemas([pa.schema([old]), pa.schema([plain])], promote_options="permissive")
            except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
                raise ValueError(
                    f"corpus: column {new.name!r} is {new.type} in {uri}, {old.type} in files before it; "
                    "make the files agree"
                ) from error
            fields[new.name] = merged.field(0)
    return pa.schema([pa.field(f.name, pa.string()) if pa.types.is_null(f.type) else f for f in fields.values()])


def _image_column(schema: pa.Schema, columns: Columns, corpus: str) -> tuple[str | None, ImageKind]:
    if columns.image is not None:
        kind = image_kind(schema.field(columns.image).type)
        if kind == "none":
            raise ValueError(
                f"corpus {corpus}: image column {columns.image!r} is {schema.field(columns.image).type}; "
                "it must be binary, a {bytes, path} struct, or a path"
            )
        return columns.image, kind
    if columns.uri is not None:
        return columns.uri, "uri"
    found = _first(schema, _IMAGE_NAMES, lambda t: image_kind(t) in ("bytes", "struct"))
    if found is not None:
        return found, image_kind(schema.field(found).type)
    found = _first(schema, _URI_NAMES, _is_string)
    return (found, "uri") if found is not None else (None, "none")


def image_kind(kind: pa.DataType) -> ImageKind:
    """What a column of this type says about a picture."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "bytes"
    if pa.types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields)):
        return "struct"
    return "uri" if _is_string(kind) else "none"


def _first(schema: pa.Schema, names: Sequence[str], fits: object, *, without: str | None = None) -> str | None:
    assert callable(fits)
    there = (name for name in names if name in schema.names and name != without)
    return next((name for name in there if fits(schema.field(name).type)), None)


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_string(kind.value_type)
    return _is_string(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type as a table keeps it: dictionaries decoded, views and large strings as ordinary ones."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind
