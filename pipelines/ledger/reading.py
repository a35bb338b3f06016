"""Reads the rejects of a table that count: see `pipelines.ledger.rejects`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.coverage import Coverage
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.rejects import REJECT_ID, REJECTS_SCHEMA, TOKEN, open_rejects
from pipelines.rows.contract import POSITION, SHARD
from pipelines.store.retries import retried, retry
from pipelines.store.storage import TableRef
from pipelines.tables.literals import is_any_of
from pipelines.tables.opening import open_dataset

_KEYS = (REJECT_ID, SHARD, POSITION, TOKEN, "reason", "attempt")
_INTERNAL = (REJECT_ID, SHARD, POSITION, TOKEN)


@dataclass(frozen=True, kw_only=True)
class RejectsSummary:
    """A summary of a table's rejects.

    Attributes:
        by_reason: reason → number of rejects, the most common reason first.
        rows: some of the rejects, as dictionaries.
    """

    by_reason: dict[str, int]
    rows: list[dict[str, Any]]


@retried
def read_rejects(table: TableRef, *, reason: str | None = None, limit: int = 20) -> RejectsSummary:
    """Counts by reason over all rejects, and the first `limit` rejects (only those of `reason`, if given)."""
    dataset = open_dataset(table, missing_ok=True)
    rejects = open_rejects(table, dataset) if dataset is not None else None
    if rejects is None:
        return RejectsSummary(by_reason={}, rows=[])
    keys, counts = judged_rejects(table, rejects, Ledger.reconcile(table).coverage)
    keys = keys.filter(counts)
    reasons = Counter(keys["reason"].to_pylist())
    listed = keys.filter(pc.equal(keys["reason"], reason)) if reason else keys
    ids = listed[REJECT_ID].slice(0, limit).to_pylist()
    columns = [name for name in REJECTS_SCHEMA.names if name not in _INTERNAL]
    rows = rejects.to_table(columns=[REJECT_ID, *columns], filter=is_any_of(REJECT_ID, ids)).to_pylist() if ids else []
    by_id = {row.pop(REJECT_ID): row for row in rows}
    return RejectsSummary(by_reason=dict(reasons.most_common()), rows=[by_id[one] for one in ids])


def judged_rejects(table: TableRef, rejects: Any, coverage: Coverage) -> tuple[pa.Table, pa.Array]:
    """The keys, reason and attempt of all rejects, and (n,) bool, whether each one counts.

    Args:
        table: the table that the rows were meant for.
        rejects: its rejects, opened.
        coverage: what is settled in the table.
    """
    there = [name for name in _KEYS if name in rejects.schema.names]
    keys = retry(lambda: rejects.to_table(columns=there), table.uri)
    if TOKEN not in there:  # rejects from before there were tokens
        keys = keys.append_column(TOKEN, pa.nulls(keys.num_rows, pa.string()))
    columns = (keys[name].to_pylist() for name in (SHARD, POSITION, TOKEN))
    counts = [coverage.counts(shard, at, token or "") for shard, at, token in zip(*columns, strict=True)]
    return keys, pa.array(counts, pa.bool_())
