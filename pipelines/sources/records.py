"""Records as tables: the steps that every reader takes once it has found its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.rows import blocks
from pipelines.rows.contract import IMAGE, RECORD_FIELDS, RECORD_PREFIX, RECORD_SCHEMA, RESERVED, Columns, Reason
from pipelines.sources.values import as_text

IMAGE_PATH = "image_path"
# Names that the blocks between the stages, or Lance itself, use beside the corpus columns.
_INTERNAL = {
    *(IMAGE, blocks.LAST, blocks.STAGE, blocks.REASON, blocks.MESSAGE),
    *(blocks.PIXELS, blocks.HEIGHT, blocks.WIDTH, blocks.OVERLONG, blocks.REUSED),
    *("_rowid", "_rowaddr", "_distance", "_score", "_relevance_score"),
}


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


def check_passthrough(names: Sequence[str], corpus: str) -> None:
    """Reject columns whose names have another meaning in a table.

    Raises:
        ValueError: names the column and the remedy.
    """
    for name in names:
        if name in RESERVED or name in _INTERNAL or name.startswith((RECORD_PREFIX, blocks.SECONDS_PREFIX)):
            raise ValueError(
                f"corpus {corpus}: column {name!r} has a name that isthmus reserves; rename it, or give it "
                "a role with --columns.ROLE"
            )


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
        path: absolute, `scheme://…`, or relative to `root`.
        root: the folder that relative paths start from and may not leave.

    Raises:
        ValueError: a relative path leads out of the corpus.
    """
    if "://" in path or path.startswith("/"):
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
