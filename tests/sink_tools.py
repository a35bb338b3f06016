"""Encoded blocks, and a committer for them: the sink without the stages before it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from encoders.protocol import EncoderCard, TowerCard
from pipelines.ingest.sink.committing import Committer
from pipelines.ingest.sink.staging import StagedGroup, stage_blocks
from pipelines.ledger.ledger import Ledger
from pipelines.rows.blocks import read_schema
from pipelines.rows.contract import POSITION, ROW_ID, SHARD
from pipelines.store.storage import TableRef
from pipelines.tables.lease import Lease
from pipelines.tables.opening import open_dataset
from pipelines.tables.provenance import Provenance

TOWER = TowerCard(modality="text", dim=4, space="s", weights="w", tokenizer=None, preprocessing="p")


CARD = EncoderCard(name="toy", spec="toy", towers=(TOWER,))


SCHEMA = pa.schema(
    [
        pa.field(ROW_ID, pa.string(), nullable=False),
        pa.field("text_vector", pa.list_(pa.float32(), 4)),
        pa.field(SHARD, pa.string()),
        pa.field(POSITION, pa.int64()),
    ],
    metadata=Provenance(encoder=CARD, modalities=("text",)).to_metadata(),
)


def block(shard: str, start: int, stop: int, *, rejected: frozenset[int] = frozenset(), end: int = 0) -> pa.Table:
    """An encoded block of records `start` to `stop`; `end` is the shard's number of records."""
    rows = [
        {
            ROW_ID: f"{shard}-{i}",
            "caption": f"caption {i}",
            "image_uri": f"/{shard}/{i}.jpg",
            SHARD: shard,
            POSITION: i,
            "_last": i == end - 1,
            "_stage": "decode" if i in rejected else None,
            "_reason": "corrupt_image" if i in rejected else None,
            "_message": "broken" if i in rejected else None,
        }
        for i in range(start, stop)
    ]
    table = pa.Table.from_pylist(rows, schema=read_schema(pa.schema([]))).drop_columns(["image"])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(len(rows) * 4, np.float32)), 4)
    table = table.append_column("text_vector", vectors)
    table = table.append_column("_overlong", pa.array([0] * len(rows), pa.int64()))
    table = table.append_column("_reused", pa.array([0] * len(rows), pa.int64()))
    return table.append_column("_seconds_encode", pa.array([0.1] * len(rows)))


def committer_of(table: TableRef) -> Committer:
    return Committer(table, Ledger.reconcile(table), Lease.acquire(table))


def stage(table: TableRef, *blocks: pa.Table) -> StagedGroup:
    return stage_blocks(table, SCHEMA, *blocks)


def row_ids(table: TableRef) -> list[str]:
    return sorted(open_dataset(table).to_table(columns=[ROW_ID])[ROW_ID].to_pylist())
