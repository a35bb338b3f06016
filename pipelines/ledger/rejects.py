"""The rejects table `<table>_rejects`: the rows that could not be embedded.

Rejects are written before the commit that settles their records. A reject counts if its claim landed and still holds,
which the table's coverage tells by the token of the staged group. Others lie there until a run deletes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.rows.contract import CAPTION, POSITION, ROW_ID, SHARD
from pipelines.store.storage import TableRef
from pipelines.tables.identity import identity_of
from pipelines.tables.opening import open_dataset
from pipelines.tables.siblings import check_ours, is_of, marked

if TYPE_CHECKING:
    import lance

REJECT_ID = "reject_id"
TOKEN = "token"
_ROLE = "rejects"

REJECTS_SCHEMA = pa.schema(
    [
        # Lance dedupes concurrent merges only on a declared key.
        pa.field(REJECT_ID, pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"}),
        pa.field(ROW_ID, pa.string()),
        pa.field("source", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("attempt", pa.int32()),
        pa.field(CAPTION, pa.string()),
        pa.field(SHARD, pa.string()),
        pa.field(POSITION, pa.int64()),
        pa.field(TOKEN, pa.string()),
    ]
)
OLD_REJECTS_SCHEMA = pa.schema([field for field in REJECTS_SCHEMA if field.name != TOKEN])


def open_rejects(table: TableRef, dataset: lance.LanceDataset) -> lance.LanceDataset | None:
    """The rejects of a table; None if it has none, or if those that lie there are of a dropped table of this name.

    Args:
        table: the table.
        dataset: the table, opened.
    """
    found = open_dataset(table.sibling("rejects"), missing_ok=True)
    if found is None or not _is_rejects(found.schema) or not is_of(found.schema, dataset):
        return None
    return found


def check_rejects(table: TableRef) -> None:
    """Check that the place of a table's rejects is free or ours.

    Raises:
        ValueError: another table of this name is there.
    """
    ref = table.sibling("rejects")
    found = open_dataset(ref, missing_ok=True)
    if found is not None:
        check_ours(ref, found.schema, _ROLE, OLD_REJECTS_SCHEMA)


def _is_rejects(schema: pa.Schema) -> bool:
    return set(OLD_REJECTS_SCHEMA.names) <= set(schema.names)


def rejects_schema(dataset: lance.LanceDataset) -> pa.Schema:
    """The schema of the rejects of a table, as a new rejects table gets it.

    Args:
        dataset: the table, opened.
    """
    return marked(REJECTS_SCHEMA, _ROLE, identity_of(dataset.schema))


def token_of(row: dict[str, Any]) -> str:
    """The token of a reject; empty for rejects from before there were tokens."""
    return row.get(TOKEN) or ""
