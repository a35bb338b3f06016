"""Records as tables: the steps that every reader takes once it has found its values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.rows import blocks
from pipelines.rows.contract import (
    IMAGE,
    OWN_PREFIX,
    RECORD_FIELDS,
    RECORD_PREFIX,
    RECORD_SCHEMA,
    RESERVED,
    Columns,
    Reason,
)
from pipelines.sources.base import CorpusShard
from pipelines.sources.file_names import bad_name_message, is_utf8
from pipelines.sources.values import as_text
from pipelines.store.storage import is_remote

IMAGE_PATH = "image_path"
# Names that the blocks between the stages use beside the corpus columns.
_INTERNAL = {
    *(IMAGE, blocks.LAST, blocks.STAGE, blocks.REASON, blocks.MESSAGE, blocks.READY),
    *(blocks.PIXELS, blocks.HEIGHT, blocks.WIDTH, blocks.OVERLONG, blocks.REUSED),
}
_PREFIXES = (RECORD_PREFIX, OWN_PREFIX, blocks.KNOWN_PREFIX, blocks.SECONDS_PREFIX)
# Columns that Lance adds to what it reads, and those in which LanceDB returns scores.
_OF_LANCE = {
    *("_rowid", "_rowaddr", "_rowoffset", "_row_created_at_version", "_row_last_updated_at_version"),
    *("_distance", "_score", "_relevance_score"),
}
# Lance takes a dot for a field of a struct, and a backtick for a quoted name; the rest it cannot find again.
_FORBIDDEN = {".": "a dot", "`": "a backtick", "\0": "a NUL character"}


def records_table(records: Sequence[dict[str, Any]], passthrough: pa.Table, images: pa.Array | None = None) -> pa.Table:
    """A table of `RECORD_SCHEMA` and the pass-through columns.

    Args:
        records: contract fields of each record; missing fields become null.
        passthrough: the other columns, one row per record.
        images: (n,) large binary array of the records' `image` fields, to avoid a copy; None takes them from `records`.
    """
    arrays = [
        images
        if name == IMAGE and images is not None
        else pa.array([record.get(name) for record in records], field.type)
        for name, field in zip(RECORD_FIELDS, RECORD_SCHEMA, strict=True)
    ]
    schema = pa.schema([*RECORD_SCHEMA, *passthrough.schema])
    return pa.Table.from_arrays([*arrays, *passthrough.columns], schema=schema)


def bad_record(message: str, image_uri: str | None, reason: Reason = Reason.BAD_RECORD) -> dict[str, Any]:
    """The contract fields of a record that could not be read."""
    return {"reason": reason.value, "message": as_text(message), "image_uri": image_uri}


def bad_records(count: int, message: str, image_uri: str, passthrough: pa.Schema) -> pa.Table:
    """Records that could not be read, as rejects with nulls in the other columns."""
    nulls = pa.Table.from_arrays([pa.nulls(count, field.type) for field in passthrough], schema=passthrough)
    return records_table([bad_record(message, image_uri)] * count, nulls)


def is_corrupt(error: BaseException) -> bool:
    """Whether an Arrow error is about the file's content, as opposed to the store or the memory.

    Arrow raises a bare OSError without an error number for a page that cannot be decoded. Errors of the operating
    system and of S3 have a number or are a subclass.
    """
    if isinstance(error, MemoryError | KeyboardInterrupt | pa.ArrowCancelled):
        return False
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)


def badly_named(shard: CorpusShard, passthrough: pa.Schema) -> pa.Table:
    """The one reject of a file whose name is not UTF-8."""
    return bad_records(1, bad_name_message(shard.uri), shard.uri, passthrough)


def name_problem(name: str) -> str | None:
    """Why no table can have a column of this name; None if one can.

    >>> name_problem("price.eur")
    'has a dot in its name'
    """
    if name in RESERVED or name in _INTERNAL or name.startswith(_PREFIXES):
        return "has a name that isthmus reserves"
    if name in _OF_LANCE:
        return "has a name that Lance reserves"
    if not name:
        return "has no name"
    if not is_utf8(name):
        return "has a name that is not UTF-8"
    return next((f"has {what} in its name" for sign, what in _FORBIDDEN.items() if sign in name), None)


def check_passthrough(names: Sequence[str], corpus: str) -> None:
    """Reject columns whose names have another meaning in a table, or that Lance refuses.

    Raises:
        ValueError: names the column and the remedy.
    """
    for name in names:
        if problem := name_problem(name):
            raise ValueError(
                f"corpus {corpus}: column {name!r} {problem}; rename it, or give it a role with --columns.ROLE"
            )


def check_encodable(names: Sequence[str], corpus: str) -> None:
    """Reject field names that Arrow cannot hold: JSON may escape half of a surrogate pair.

    Raises:
        ValueError: names the field and the remedy.
    """
    check_passthrough([name for name in names if not is_utf8(name)], corpus)


def check_roles(columns: Columns, names: Sequence[str], corpus: str, roles: Sequence[str] = ()) -> None:
    """Reject roles that name a missing column.

    Args:
        columns: the roles that the user named.
        names: the existing columns.
        corpus: the corpus as the user named it, for messages.
        roles: the roles to check; all if empty.

    Raises:
        ValueError: names the missing column and lists the existing ones.
    """
    for role, name in vars(columns).items():
        if name is not None and name not in names and (not roles or role in roles):
            raise ValueError(
                f"corpus {corpus}: no column {name!r} (--columns.{role}); columns are {', '.join(names) or 'none'}"
            )


def as_key(value: Any) -> str | None:
    """A key column's value as a row id; None if it is empty. Bytes that are not text (a UUID) become hexadecimal."""
    if isinstance(value, bytes):
        try:
            return value.decode() or None
        except UnicodeDecodeError:
            return value.hex()
    return None if value is None or value == "" else as_text(str(value))


def as_captions(value: Any) -> list[str] | None:
    """A caption, or a list of captions, as a list of strings; None stays None."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [as_text(str(item)) for item in value if item is not None]
    return [as_text(str(value))]


def picture_fields(path: Any, root: str) -> dict[str, Any]:
    """The contract fields of a picture named by its path: its URI, or the reason for its rejection."""
    if path is None or path == "":
        return {}
    text = as_text(str(path))
    try:
        return {"image_uri": resolve_picture(text, root)}
    except ValueError as error:
        return bad_record(str(error), text)


def resolve_picture(path: str, root: str) -> str:
    """The absolute URI of a picture named in a corpus.

    Args:
        path: absolute, `scheme://…`, or relative to `root`. A file on disk may have a name that looks like a URI.
        root: the folder that relative paths start from and may not leave.

    Raises:
        ValueError: a relative path leads out of the corpus.
    """
    if path.startswith("/") or ("://" in path and not _is_file_below(root, path)):
        return path
    parts: list[str] = []
    for part in path.replace("\\", "/").split("/"):
        if part == "..":
            if not parts:
                raise ValueError(f"the path {path!r} leads out of the corpus")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join([root.rstrip("/"), *parts])


def _is_file_below(root: str, path: str) -> bool:
    return not is_remote(root) and os.path.isfile(f"{root}/{path}")  # noqa: PTH113  (a Path costs more than its stat)
