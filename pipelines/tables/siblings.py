"""Marks of the tables that isthmus writes beside a table: their role, and the identity of the table they belong to.

A name proves nothing: `scans_ledger` may be a user's own table. A table without the mark is never written to.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.store.storage import TableRef
from pipelines.tables.identity import identity_of

if TYPE_CHECKING:
    import lance

_MARK = b"isthmus.beside"


def marked(schema: pa.Schema, role: str, table: str | None) -> pa.Schema:
    """The schema with a mark.

    Args:
        schema: the schema of a table beside another one.
        role: what it holds, such as `rejects`.
        table: the identity of the table that it belongs to; None if that table has none yet.
    """
    mark = json.dumps({"role": role, "table": table})
    return schema.with_metadata({**(schema.metadata or {}), _MARK: mark.encode()})


def check_ours(ref: TableRef, found: pa.Schema, role: str, old_schema: pa.Schema) -> None:
    """Refuse to write to a table that somebody else made.

    Args:
        ref: the table beside.
        found: its schema.
        role: what isthmus would keep there.
        old_schema: the layout of such tables from before there were marks.

    Raises:
        ValueError: the table has no mark of this role.
    """
    raw = (found.metadata or {}).get(_MARK)
    if raw is not None and json.loads(raw).get("role") == role:
        return
    if raw is None and [(f.name, f.type) for f in found] == [(f.name, f.type) for f in old_schema]:
        return
    raise ValueError(
        f"table {ref}: was not made by isthmus, which keeps the {role} of a table under this name. Nothing was "
        f"written. Rename {ref.name!r}, or embed into a table of another name"
    )


def is_of(found: pa.Schema, table: lance.LanceDataset) -> bool:
    """Whether a table beside belongs to this table, and not to a dropped one of the same name.

    Tables without a mark, or with one that names no table, are from before there were identities.
    """
    raw = (found.metadata or {}).get(_MARK)
    owner = json.loads(raw).get("table") if raw is not None else None
    return owner is None or owner == identity_of(table.schema)
