"""What lies in the tables beside a table, without what differs from run to run."""

from __future__ import annotations

import lance
import pyarrow as pa

from pipelines.ledger.rejects import REJECT_ID, TOKEN


def stored_rejects(table: str, storage: dict[str, str] | None = None) -> pa.Table:
    """All rows of a table's rejects, sorted, without their random tokens.

    Args:
        table: the table's path, without `.lance`.
        storage: options of its store.
    """
    rows = lance.dataset(f"{table}_rejects.lance", storage_options=storage).to_table()
    order = [(name, "ascending") for name in ("row_id", "source", "isthmus_shard", "isthmus_position", "caption")]
    return rows.sort_by(order).drop_columns([REJECT_ID, TOKEN])
