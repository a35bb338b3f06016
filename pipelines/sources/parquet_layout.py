"""Which column of a Parquet corpus plays which role, and which columns pass through with which type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa

from pipelines.rows.contract import IMAGE_URI, RESERVED, Columns
from pipelines.rows.types import is_list, is_of_fixed_size
from pipelines.sources.records import IMAGE_PATH, check_passthrough, check_roles, name_problem
from pipelines.sources.values import without_null_types

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "picture")
_URI_NAMES = ("image_path", "path", "image_uri", "uri", "url", "filepath", "file_name", "filename", "image")
_CAPTION_NAMES = ("caption", "captions", "text", "txt", "sentence", "sentences", "alt", "TEXT")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Roles and pass-through columns of a Parquet corpus.

    Attributes:
        image: the column of pictures, as bytes or as a `{bytes, path}` struct.
        uri: the column of paths, used for rows without bytes.
        caption: the column of captions, single or in lists.
        key: the column of row ids.
        item: the column of item ids.
        path_as: the pass-through column that stores the pictures' paths as written.
        types: all columns of the files, with the types that all files are cast to.
        partitions: columns from `key=value` folders (those that the files lack themselves).
        passthrough: the fields that go to the table.
    """

    image: str | None
    uri: str | None
    caption: str | None
    key: str | None
    item: str | None
    path_as: str | None
    types: pa.Schema
    partitions: pa.Schema
    passthrough: pa.Schema


def make_layout(schema: pa.Schema, partitions: pa.Schema, columns: Columns, corpus: str) -> Layout:
    """The layout of a corpus.

    Args:
        schema: the unified schema of the files.
        partitions: fields of the hive partitions.
        columns: the roles that the user named.
        corpus: the corpus as the user named it, for messages.

    Raises:
        ValueError: a named column is missing or of the wrong type, or a column's name is reserved.
    """
    folders = pa.schema([field for field in partitions if field.name not in schema.names])
    untyped, schema = schema, without_null_types(schema)
    everything = pa.schema([*schema, *folders])
    check_roles(columns, everything.names, corpus)
    image, uri = _picture_columns(everything, columns, corpus)
    caption = columns.caption or _first(schema, _CAPTION_NAMES, _is_text, without={image, uri})
    _check_types(everything, caption, columns, corpus)
    if image is None and uri is None and caption is None:
        raise ValueError(
            f"corpus {corpus}: neither pictures nor captions are among its columns {', '.join(everything.names)}; "
            "name one with --columns.image, --columns.uri or --columns.caption"
        )
    kept = {columns.key, columns.item} - RESERVED
    hidden = {caption, image, uri} | ({columns.key, columns.item} & RESERVED)
    roles = {image, uri, caption, columns.key, columns.item}
    types = pa.schema([new if new.name in roles else old for old, new in zip(untyped, schema, strict=True)])
    passthrough = [field for field in (*types, *folders) if field.name not in hidden - kept]
    names = [field.name for field in passthrough]
    check_passthrough(names, corpus)
    has_path = uri is not None or (image is not None and _has_path(schema.field(image).type))
    path_as = next((n for n in (IMAGE_PATH, uri) if n and n not in names and not name_problem(n)), None)
    if has_path and path_as is not None:
        passthrough.append(pa.field(path_as, pa.string()))
    return Layout(
        image=image,
        uri=uri,
        caption=caption,
        key=columns.key,
        item=columns.item,
        path_as=path_as if has_path else None,
        types=types,
        partitions=folders,
        passthrough=pa.schema(passthrough),
    )


def unify(schemas: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """One schema for all files: null yields to any type, integers and floats widen, missing columns are null.

    Args:
        schemas: (uri, schema) of each file.

    Raises:
        ValueError: the types of a column do not agree (names the column, both files and both types), or a file has a
            column twice.
    """
    fields: dict[str, pa.Field] = {}
    origins: dict[str, str] = {}
    for uri, schema in schemas:
        if twice := next((name for name in schema.names if schema.names.count(name) > 1), None):
            raise ValueError(f"column {twice!r} occurs twice in {uri}; write the file again with distinct names")
        for new in schema:
            plain = pa.field(new.name, plain_type(new.type))
            old = fields.setdefault(new.name, plain)
            origin = origins.setdefault(new.name, uri)
            if old.type == plain.type:
                continue
            try:
                merged = pa.unify_schemas([pa.schema([old]), pa.schema([plain])], promote_options="permissive")
            except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
                raise ValueError(
                    f"column {new.name!r} is {plain.type} in {uri}, but {old.type} in {origin}; make the files agree"
                ) from error
            fields[new.name] = merged.field(0)
    return pa.schema(list(fields.values()))


def partition_values(relative: str) -> dict[str, str | None]:
    """The `key=value` folders of a file's path below the corpus root.

    >>> partition_values("year=2020/lang=zh%20TW/a.parquet")
    {'year': '2020', 'lang': 'zh TW'}
    """
    parts = (part.partition("=") for part in relative.split("/")[:-1])
    pairs = ((unquote(name), unquote(value)) for name, sep, value in parts if sep and name)
    return {name: None if value == _HIVE_NULL else value for name, value in pairs}


def partition_schema(relatives: Iterable[str]) -> pa.Schema:
    """Fields of the `key=value` folders: int64 if every value is a whole number, else strings."""
    values: dict[str, set[str | None]] = {}
    for relative in relatives:
        for name, value in partition_values(relative).items():
            values.setdefault(name, set()).add(value)
    whole = {name: all(_WHOLE.fullmatch(v) for v in vs if v is not None) for name, vs in values.items()}
    return pa.schema([pa.field(name, pa.int64() if whole[name] else pa.string()) for name in values])


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a table stores this type.

    Dictionaries are decoded, extensions become their storage type, views and large strings become ordinary ones, small
    decimals become decimal128, also within lists, structs and maps. Lists of a fixed size keep it if their items have a
    fixed size too; others become ordinary lists, because Lance cannot read them back.
    """
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if is_list(kind):
        inner, size = plain_type(kind.value_type), getattr(kind, "list_size", 0)
        return pa.list_(inner, size) if size > 0 and is_of_fixed_size(inner) else pa.list_(inner)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(kind.field(i).name, plain_type(kind.field(i).type)) for i in range(kind.num_fields)])
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _picture_columns(schema: pa.Schema, columns: Columns, corpus: str) -> tuple[str | None, str | None]:
    """The column of the pictures' bytes, and the column of their paths."""
    image, uri = columns.image, columns.uri
    if image is not None and _is_string(schema.field(image).type):
        image, uri = None, uri or image
    elif image is not None and not _holds_bytes(schema.field(image).type):
        raise ValueError(
            f"corpus {corpus}: image column {image!r} is {schema.field(image).type}; it must be binary, a "
            "{bytes, path} struct, or a string that holds a path"
        )
    if image is None and uri is None:
        image = _first(schema, _IMAGE_NAMES, _holds_bytes)
    if uri is None:
        # Beside pictures, a `url` is an ordinary column. But `image_uri` can have only one meaning in the table.
        uri = _first(schema, _URI_NAMES if image is None else (IMAGE_URI,), _is_string)
    return image, uri


def _check_types(schema: pa.Schema, caption: str | None, columns: Columns, corpus: str) -> None:
    if caption is not None and not _is_text(schema.field(caption).type):
        raise ValueError(f"corpus {corpus}: caption column {caption!r} is {schema.field(caption).type}, not strings")
    if columns.uri is not None and not _is_string(schema.field(columns.uri).type):
        kind = schema.field(columns.uri).type
        raise ValueError(f"corpus {corpus}: uri column {columns.uri!r} is {kind}, not strings")
    for name in (columns.key, columns.item):
        if name is not None and pa.types.is_nested(schema.field(name).type):
            raise ValueError(f"corpus {corpus}: column {name!r} is {schema.field(name).type}; an id is a single value")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _has_path(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and any(kind.field(i).name == "path" for i in range(kind.num_fields)))


def _first(
    schema: pa.Schema, names: Sequence[str], fits: Callable[[pa.DataType], bool], without: set[str | None] | None = None
) -> str | None:
    there = (name for name in names if name in schema.names and name not in (without or ()))
    return next((name for name in there if fits(schema.field(name).type)), None)


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind))


def _is_text(kind: pa.DataType) -> bool:
    return _is_string(kind.value_type if pa.types.is_list(kind) else kind)
