"""The identity of a table: made once, kept in the schema's metadata.

It survives compaction, copying and renaming. A table that is dropped and made anew gets a new one. Everything beside a
table (its ledger, its rejects, mined negatives) names the identity of the table that it belongs to, because a name
proves nothing.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.store.retries import retried

if TYPE_CHECKING:
    import lance

IDENTITY_KEY = b"isthmus.table"


def with_new_identity(schema: pa.Schema) -> pa.Schema:
    """The schema of a new table, with an identity of its own."""
    return schema.with_metadata({**(schema.metadata or {}), IDENTITY_KEY: uuid.uuid4().hex.encode()})


def identity_of(schema: pa.Schema) -> str | None:
    """The identity in a table's schema; None for a table that was made before tables had one, or by another tool."""
    raw = (schema.metadata or {}).get(IDENTITY_KEY)
    return raw.decode() if raw else None


@retried
def ensure_identity(dataset: lance.LanceDataset) -> str:
    """The table's identity. A table without one gets it, which makes a new version."""
    found = identity_of(dataset.schema)
    if found is None:
        found = uuid.uuid4().hex
        dataset.update_schema_metadata({IDENTITY_KEY.decode(): found})
    return found
