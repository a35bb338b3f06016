"""Coverage rebuilt from the rows of a table and its rejects, when the ledger cannot be trusted.

It is slower than reading the ledger, and as exact: where shards end and which files they are of do not depend on the
table, so what an old ledger says of them still holds. Rows without a shard, which other tools added, are nobody's
claim. A record that a user deleted is no longer settled.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.claims import Change, Claim, Rejecting, claims_of, claims_of_columns, merge_claims
from pipelines.ledger.coverage import Coverage
from pipelines.ledger.rejects import open_rejects, token_of
from pipelines.rows.contract import POSITION, SHARD
from pipelines.store.retries import retry
from pipelines.store.storage import TableRef

if TYPE_CHECKING:
    import lance

Record = tuple[str, int]


def rebuilt_from_rows(table: TableRef, dataset: lance.LanceDataset, known: Coverage, *, ledger_is_lost: bool) -> Change:
    """What is settled by the rows and the rejects, as one change.

    Args:
        table: the table.
        dataset: the version whose rows are read.
        known: an untrusted coverage. Ends of shards, files and tokens of landed commits are taken from it.
        ledger_is_lost: whether there was no ledger to take them from.
    """
    rows = retry(lambda: _row_claims(dataset), table.uri)
    settled = Coverage(merge_claims(rows))
    rejects = _rejects_that_count(table, dataset, settled, known, ledger_is_lost=ledger_is_lost)
    claims = merge_claims([*rows, *claims_of((*record, False, True) for record, _, n in rejects for _ in range(n))])
    shards = {claim.shard for claim in claims}
    ends = [_end(shard, stop) for shard, stop in sorted(known.ends.items()) if shard in shards]
    return Change(
        claims=(*claims, *ends),
        rejecting=tuple(_rejecting((record, token) for record, token, _ in rejects)),
        files=known.files,
    )


def _row_claims(dataset: lance.LanceDataset) -> list[Claim]:
    """The claims of the table's rows, in pieces: one per batch and range. `merge_claims` joins them."""
    claims: list[Claim] = []
    for batch in dataset.scanner(columns=[SHARD, POSITION]).to_batches():
        batch = batch.filter(pc.and_(pc.is_valid(batch.column(SHARD)), pc.is_valid(batch.column(POSITION))))
        shards, positions = pc.cast(batch.column(SHARD), pa.string()), batch.column(POSITION).to_numpy()
        nothing = np.zeros(batch.num_rows, np.bool_)
        claims += claims_of_columns(shards, positions, nothing, nothing)
    return claims


def _rejects_that_count(
    table: TableRef, dataset: lance.LanceDataset, settled: Coverage, known: Coverage, *, ledger_is_lost: bool
) -> list[tuple[Record, str, int]]:
    """Each rejected record with the token whose rejects count, and the number of these rejects.

    Those count that are known to have landed; the records of others are read again. If the ledger is lost, nothing is
    known. Then all rejects count, because each is true of its record, except those of records that have rows.
    """
    rejects = open_rejects(table, dataset)
    if rejects is None:
        return []
    landed = {part.token for part in known.rejecting}
    found: dict[Record, dict[str, list[int]]] = {}
    for row in retry(lambda: rejects.to_table().to_pylist(), table.uri):
        record = (row[SHARD], row[POSITION])
        found.setdefault(record, {}).setdefault(token_of(row), []).append(row["attempt"])
    chosen = []
    for record, tokens in sorted(found.items()):
        token = max(tokens, key=lambda token: (token in landed, max(tokens[token])))
        if token in landed or (ledger_is_lost and not settled.has(*record)):
            chosen.append((record, token, len(tokens[token])))
    return chosen


def _rejecting(records: Iterable[tuple[Record, str]]) -> list[Rejecting]:
    by_token: dict[str, list[Record]] = {}
    for record, token in records:
        by_token.setdefault(token, []).append(record)
    return [
        Rejecting(shard=claim.shard, start=claim.start, stop=claim.stop, token=token)
        for token, of_token in sorted(by_token.items())
        for claim in claims_of((*record, False, True) for record in of_token)
    ]


def _end(shard: str, stop: int) -> Claim:
    return Claim(shard=shard, start=stop, stop=stop, last=True, written=0, rejected=0)
