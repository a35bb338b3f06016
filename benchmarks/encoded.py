"""Synthetic encoded blocks, as the encode stage gives them to the sink, for benches of the later stages."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from encoders.protocol import EncoderCard, TowerCard
from pipelines.rows.blocks import LAST, MESSAGE, OVERLONG, REASON, REUSED, SECONDS_PREFIX, STAGE
from pipelines.rows.contract import CAPTION, IMAGE_URI, IMAGE_VECTOR, ITEM_ID, PICTURE, POSITION, ROW_ID, SHARD, TEXT
from pipelines.tables.provenance import Provenance

PRICE = "price"


def schema_of(dim: int) -> pa.Schema:
    """The schema of a table of pictures and captions, with one column of the corpus and one vector column."""
    tower = TowerCard(modality="image", dim=dim, space="s", weights="w", tokenizer=None, preprocessing="p")
    card = EncoderCard(name="made-up", spec="made-up", towers=(tower,))
    fields = [
        pa.field(ROW_ID, pa.string(), nullable=False),
        pa.field(ITEM_ID, pa.string()),
        pa.field(CAPTION, pa.string()),
        pa.field(IMAGE_URI, pa.string()),
        pa.field(PRICE, pa.float64()),
        pa.field(IMAGE_VECTOR, pa.list_(pa.float32(), dim)),
        pa.field(PICTURE, pa.string()),
        pa.field(TEXT, pa.string()),
        pa.field(SHARD, pa.string()),
        pa.field(POSITION, pa.int64()),
    ]
    return pa.schema(fields, metadata=Provenance(encoder=card, modalities=("image",)).to_metadata())


def encoded_block(shard: int, start: int, stop: int, dim: int, rows_of_shard: int) -> pa.Table:
    """Rows `start` to `stop` of a shard, with random vectors and no rejects.

    Args:
        shard: number of the shard; its rows follow those of the shards before it.
        start: first position.
        stop: one past the last position.
        dim: length of the vectors.
        rows_of_shard: total number of rows in the shard.
    """
    n = stop - start
    numbers = range(shard * rows_of_shard + start, shard * rows_of_shard + stop)
    vectors = np.random.default_rng([shard, start]).standard_normal((n, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nothing = pa.nulls(n, pa.string())
    columns: dict[str, pa.Array] = {
        ROW_ID: pa.array([f"sku-{i:010d}" for i in numbers]),
        ITEM_ID: pa.array([f"sku-{i:010d}" for i in numbers]),
        CAPTION: pa.array([f"a thing of some kind, the one with the number {i}" for i in numbers]),
        IMAGE_URI: pa.array([f"corpus/part-{shard:05d}.parquet#row={i}&column=image" for i in range(start, stop)]),
        PRICE: pa.array(np.arange(start, stop, dtype=np.float64)),
        SHARD: pa.array([shard_id(shard)] * n),
        POSITION: pa.array(range(start, stop), pa.int64()),
        LAST: pa.array([i == rows_of_shard - 1 for i in range(start, stop)]),
        PICTURE: pa.array([f"{i:032x}" for i in numbers]),
        TEXT: pa.array([f"{i:032x}" for i in numbers]),
        STAGE: nothing,
        REASON: nothing,
        MESSAGE: nothing,
        SECONDS_PREFIX + "read": pa.array(np.full(n, 1e-5)),
        SECONDS_PREFIX + "decode": pa.array(np.full(n, 1e-5)),
        IMAGE_VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim),
        OVERLONG: pa.array(np.zeros(n, np.int64)),
        REUSED: pa.array(np.zeros(n, np.int64)),
        SECONDS_PREFIX + "encode": pa.array(np.full(n, 1e-5)),
    }
    return pa.table(columns)


def shard_id(shard: int) -> str:
    """The id of a shard, with the length of a real one."""
    return f"{shard:032x}-{shard:032x}"


def blocks_of(rows: int, *, block_rows: int, shard_rows: int, dim: int) -> list[pa.Table]:
    """Blocks with `rows` rows in total, in shards of `shard_rows` rows. A block lies within one shard."""
    return [
        encoded_block(shard, start, min(start + block_rows, shard_rows, rows - shard * shard_rows), dim, shard_rows)
        for shard in range(-(-rows // shard_rows))
        for start in range(0, min(shard_rows, rows - shard * shard_rows), block_rows)
    ]
