"""Records as tables: what every reader does after it has found its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.contract import RECORD_FIELDS, RECORD_PREFIX, RECORD_SCHEMA, RESERVED


def records_table(records: Sequence[dict[str, Any]], passthrough: pa.Table) -> pa.Table:
    """A table of `RECORD_SCHEMA` and the pass-through columns.

    Args:
        records: contract fields of each record; fields left out are null.
        passthrough: the other columns, as many rows.
    """
    columns = [[record.get(name) for record in records] for name in RECORD_FIELDS]
    table = pa.table(columns, schema=RECORD_SCHEMA)
    for field in passthrough.schema:
        table = table.append_column(field, passthrough[field.name])
    return table


def bad_records(count: int, message: str, image_uri: str, passthrough: pa.Schema) -> pa.Table:
    """Records that could not be read, as rejects with nulls in the other columns."""
    record = {"reason": "bad_record", "message": message, "image_uri": image_uri}
    nulls = pa.table([pa.nulls(count, field.type) for field in passthrough], schema=passthrough)
    return records_table([record] * count, nulls)


def check_passthrough(names: Sequence[str], corpus: str) -> None:
    """Refuse columns whose names mean something else in a table.

    Raises:
        ValueError: names the column and the remedy.
    """
    for name in names:
        if name in RESERVED or name.startswith(("_", RECORD_PREFIX)):
            raise ValueError(
                f"corpus {corpus}: column {name!r} has a name that isthmus keeps for itself; rename it, or give it "
                "a role by --columns.ROLE"
            )


def as_key(value: Any) -> str | None:
    """A key column's value as a row id."""
    if value is None:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def as_captions(value: Any) -> list[str] | None:
    """A caption, or a list of them, as a list of strings."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value if item is not None]
    return [str(value)]


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
