"""Which field plays which role in a list of pictures (CSV, TSV, JSONL, COCO, Karpathy), and which pass through."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipelines.rows.contract import RESERVED, Columns
from pipelines.sources.records import (
    IMAGE_PATH,
    as_captions,
    as_key,
    bad_record,
    check_encodable,
    check_passthrough,
    check_roles,
    name_problem,
    picture_fields,
    records_table,
)
from pipelines.sources.values import adopted, fit_table
from pipelines.store.storage import Storage

_URI_NAMES = (
    *("image_path", "image", "img", "file_name", "filename", "filepath", "path"),
    *("image_uri", "uri", "url", "picture"),
)
_CAPTION_NAMES = ("caption", "captions", "text", "txt", "sentence", "sentences", "alt", "TEXT")
_PROBES = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """A record of a list.

    Attributes:
        fields: field → value; empty if the record could not be read.
        error: why it could not be read; None if it could.
    """

    fields: Mapping[str, Any]
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """Roles and pass-through fields of a list.

    Attributes:
        uri: the field with the picture's path.
        caption: the field with the caption or the list of captions.
        key: the field with the row id.
        item: the field with the item id.
        root: the folder that relative picture paths start from.
        path_as: the pass-through column that stores the path as written.
        passthrough: the fields that go to the table.
    """

    uri: str | None
    caption: str | None
    key: str | None
    item: str | None
    root: str
    path_as: str | None
    passthrough: pa.Schema

    def modalities(self) -> frozenset[str]:
        """The modalities that have a field."""
        found = {"image": self.uri, "text": self.caption}
        return frozenset(name for name, field in found.items() if field is not None)

    def adopting(self, table: pa.Schema) -> RowLayout:
        """The layout with a table's types for the pass-through fields; see `adopted`."""
        return replace(self, passthrough=adopted(self.passthrough, table))

    def table(self, rows: Sequence[Row], uri: str) -> pa.Table:
        """Rows as records and pass-through columns.

        Args:
            rows: rows of the list.
            uri: the URI of the list, which rejects are named by.
        """
        records = [self._record(row, uri) for row in rows]
        fields: list[Mapping[str, Any]] = [row.fields for row in rows]
        if self.path_as is not None and self.uri is not None:
            fields = [{**row, self.path_as: row.get(self.uri)} for row in fields]
        return records_table(records, fit_table(fields, self.passthrough))

    def _record(self, row: Row, uri: str) -> dict[str, Any]:
        if row.error is not None:
            return bad_record(row.error, uri)
        get = row.fields.get
        return {
            "key": as_key(get(self.key or "")),
            "item": as_key(get(self.item or "")),
            "captions": as_captions(get(self.caption or "")),
            **picture_fields(get(self.uri or ""), self.root),
        }


def choose_roles(names: Sequence[str], columns: Columns, corpus: str) -> Columns:
    """The roles of a list's fields: the roles that the user named, and the usual names for the others.

    Raises:
        ValueError: a named field is missing or has a name that is not UTF-8, or there are neither pictures nor
            captions.
    """
    check_encodable(names, corpus)
    check_roles(columns, names, corpus)
    uri = columns.uri or columns.image or next((n for n in _URI_NAMES if n in names and n != columns.caption), None)
    caption = columns.caption or next((n for n in _CAPTION_NAMES if n in names and n != uri), None)
    if uri is None and caption is None:
        raise ValueError(
            f"corpus {corpus}: neither pictures nor captions are among its columns {', '.join(names) or 'none'}; "
            "name one with --columns.uri or --columns.caption (the first line of a CSV holds the names)"
        )
    return Columns(key=columns.key, item=columns.item, uri=uri, caption=caption)


def make_row_layout(types: pa.Schema, roles: Columns, root: str, corpus: str) -> RowLayout:
    """The layout of a list.

    Args:
        types: the list's fields and their types.
        roles: the fields' roles; all of these fields exist.
        root: the folder that relative paths start from.
        corpus: the corpus as the user named it, for messages.

    Raises:
        ValueError: a field has a name that isthmus reserves.
    """
    ids = {roles.key, roles.item}
    hidden = ({roles.uri, roles.caption} - (ids - RESERVED)) | (ids & RESERVED)
    passthrough = [field for field in types if field.name not in hidden]
    names = [field.name for field in passthrough]
    check_passthrough(names, corpus)
    path_as = next((n for n in (IMAGE_PATH, roles.uri) if n and n not in names and not name_problem(n)), None)
    path_as = path_as if roles.uri is not None else None
    if path_as is not None:
        passthrough.append(pa.field(path_as, pa.string()))
    return RowLayout(
        uri=roles.uri,
        caption=roles.caption,
        key=roles.key,
        item=roles.item,
        root=root,
        path_as=path_as,
        passthrough=pa.schema(passthrough),
    )


def find_root(paths: Sequence[str], candidates: Sequence[str], storage: Storage) -> str:
    """The first folder that contains one of the first pictures; the first candidate if none does.

    Args:
        paths: some pictures' paths as the list gives them.
        candidates: folders to look in, in order.
        storage: how to reach them.
    """
    relative = [path for path in paths if path and "://" not in path and not path.startswith("/")][:_PROBES]
    for folder in candidates:
        files = storage.filesystem(folder)
        if any(files.exists(posixpath.join(folder, path)) for path in relative):
            return folder
    return candidates[0]
