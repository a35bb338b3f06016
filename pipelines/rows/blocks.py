"""The blocks that flow between the stages: the table's columns plus internal ones that the sink consumes.

Ray Data merges and splits its blocks by bytes. Ours must stay whole, so each travels in an envelope: a Ray row that
holds one of our blocks as Arrow IPC, which Ray can neither split nor read.

A block has about `block_rows` rows. Rows of one picture in one block carry its bytes (later its pixels) once, on the
first of them; `PICTURE` (a digest of the bytes) joins the others to it. A rejected row stays in its block with `REASON`
set, so that the sink can claim its record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.rows.contract import (
    CAPTION,
    IMAGE,
    IMAGE_URI,
    ITEM_ID,
    PICTURE,
    POSITION,
    ROW_ID,
    SHARD,
    TEXT,
    Reason,
    Stage,
)

LAST = "_last"
STAGE = "_stage"
REASON = "_reason"
MESSAGE = "_message"
PIXELS = "_pixels"
HEIGHT = "_height"
WIDTH = "_width"
OVERLONG = "_overlong"
REUSED = "_reused"
READY = "_ready"
KNOWN_PREFIX = "_known_"
SECONDS_PREFIX = "_seconds_"

_IDENTITY = [
    pa.field(ROW_ID, pa.string()),
    pa.field(ITEM_ID, pa.string()),
    pa.field(CAPTION, pa.string()),
    pa.field(IMAGE_URI, pa.string()),
]
_INTERNAL = [
    pa.field(SHARD, pa.string()),
    pa.field(POSITION, pa.int64()),
    pa.field(LAST, pa.bool_()),
    pa.field(PICTURE, pa.string()),
    pa.field(TEXT, pa.string()),
    pa.field(STAGE, pa.string()),
    pa.field(REASON, pa.string()),
    pa.field(MESSAGE, pa.string()),
    pa.field(IMAGE, pa.large_binary()),
]
_MESSAGE_CHARS = 500
_ENVELOPE = "block"


def wrap(block: pa.Table) -> pa.Table:
    """Put a block into an envelope: a table of one row."""
    # Compute the size first: a growing buffer is copied repeatedly, each time into new pages.
    sizing = pa.MockOutputStream()
    _write(block, sizing)
    payload = pa.allocate_buffer(sizing.size())
    _write(block, pa.FixedSizeBufferWriter(payload))
    offsets = pa.py_buffer(np.array([0, payload.size], np.int64))
    array = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, payload])
    return pa.table({_ENVELOPE: array})


def unwrap(envelopes: pa.Table) -> list[pa.Table]:
    """The blocks in some envelopes, as views of their bytes."""
    return [pa.ipc.open_stream(_aligned(payload)).read_all() for payload in views(envelopes[_ENVELOPE])]


def _write(block: pa.Table, stream: pa.NativeFile) -> None:
    with pa.ipc.new_stream(stream, block.schema) as writer:
        writer.write_table(block)


def _aligned(payload: pa.Buffer) -> pa.Buffer:
    """The buffer, copied if it is not aligned to 8 bytes, as may happen to an envelope behind another."""
    return payload if payload.address % 8 == 0 else pa.py_buffer(payload.to_pybytes())


def views(column: pa.ChunkedArray) -> Iterator[pa.Buffer]:
    """The bytes of each valid row of a large binary column, as views; the buffer of a scalar would be a copy."""
    for chunk in filter(len, column.chunks):
        valid, offsets, data = chunk.buffers()
        data = pa.py_buffer(b"") if data is None else data  # None if all rows are empty
        ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        is_there = np.ones(len(chunk), bool) if valid is None else chunk.is_valid().to_numpy(zero_copy_only=False)
        for start, stop in zip(ends[:-1][is_there].tolist(), ends[1:][is_there].tolist(), strict=True):
            yield data.slice(start, stop - start)


def valid_rows(column: pa.ChunkedArray) -> list[int]:
    """The row numbers of the values that `views` yields."""
    return list(np.flatnonzero(column.is_valid().to_numpy()).tolist())


def as_binary(arrays: Sequence[NDArray[np.uint8] | None]) -> pa.Array:
    """The bytes of each array as large binary, null for None; copied once, into memory of the right size."""
    ends = np.cumsum([0, *(0 if a is None else a.size for a in arrays)], dtype=np.int64)
    flat = [a.reshape(-1) for a in arrays if a is not None]
    data = np.concatenate(flat) if flat else np.zeros(0, np.uint8)
    is_there = np.array([a is not None for a in arrays], bool)
    valid = pa.py_buffer(np.packbits(is_there, bitorder="little"))
    buffers = [valid, pa.py_buffer(ends), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(arrays), buffers)


def unwrap_one(envelopes: pa.Table) -> pa.Table:
    """The block of one envelope."""
    (block,) = unwrap(envelopes)
    return block


def read_schema(passthrough: pa.Schema) -> pa.Schema:
    """The schema of the blocks that the read stage makes: identity, pass-through columns, internal columns."""
    return pa.schema([*_IDENTITY, *passthrough, *_INTERNAL])


def timing_columns(schema: pa.Schema) -> dict[str, str]:
    """Stage name → name of the column that holds each row's share of that stage's seconds."""
    return {name.removeprefix(SECONDS_PREFIX): name for name in schema.names if name.startswith(SECONDS_PREFIX)}


def with_seconds(block: pa.Table, stage: str, seconds: float) -> pa.Table:
    """The block with a stage's seconds in a new column, spread evenly over its rows."""
    share = pa.array([seconds / max(block.num_rows, 1)] * block.num_rows, pa.float64())
    return block.append_column(SECONDS_PREFIX + stage, share)


def set_column(block: pa.Table, name: str, values: pa.Array | Sequence[Any]) -> pa.Table:
    """The block with one of its columns replaced; the column keeps its type."""
    index = block.schema.get_field_index(name)
    kind = block.schema.field(index).type
    array = values if isinstance(values, pa.Array) else pa.array(values, kind)
    return block.set_column(index, block.schema.field(index), array)


class Rejections:
    """The rejects of one stage, collected row by row and written into the block at the end."""

    def __init__(self, block: pa.Table, stage: Stage) -> None:
        self._block = block
        self._stage = stage
        self._reasons = block[REASON].to_pylist()
        self._messages = block[MESSAGE].to_pylist()
        self._stages = block[STAGE].to_pylist()

    def __contains__(self, row: int) -> bool:
        return self._reasons[row] is not None

    def add(self, row: int, reason: Reason | str, message: str) -> None:
        """Reject a row; if it is already rejected, its first reason stays."""
        if self._reasons[row] is None:
            self._reasons[row] = Reason(reason).value
            self._messages[row] = shorten(message)
            self._stages[row] = self._stage.value

    def apply(self) -> pa.Table:
        """The block with the rejects written in."""
        block = set_column(self._block, REASON, self._reasons)
        block = set_column(block, MESSAGE, self._messages)
        return set_column(block, STAGE, self._stages)


def shorten(message: str) -> str:
    """A message that fits a table's cell: at most 500 characters, without NUL bytes."""
    text = message.replace("\0", "\\0")
    return text if len(text) <= _MESSAGE_CHARS else text[: _MESSAGE_CHARS - 1] + "…"
