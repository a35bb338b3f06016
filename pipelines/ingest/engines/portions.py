"""How work is shared out among processes that ask for more when they are done: a pure function of plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from pipelines.ingest.sink.claims import Coverage
from pipelines.ingest.stages.reading import ShardWork

# Each process gets its work in so many portions or more, if there are rows enough.
_EACH = 8
# Portions get smaller towards the end, so that the processes end together; but not smaller than this, of a block.
_LEAST = 1 / 8


def portions(work: Sequence[ShardWork], processes: int, block_rows: int, block_bytes: int) -> Iterator[list[ShardWork]]:
    """The work in the order of the corpus, in portions of up to about a block, and of less at the end.

    What is left is shared out so that nobody gets more than half of an even share at once (guided self-scheduling:
    Polychronopoulos and Kuck, 1987). A shard is read as a whole by whoever reads any of it. So it is cut only where
    there are too few for the processes to end together, and then into no more pieces than processes.

    Args:
        work: shards, and which of their records are settled.
        processes: how many will ask.
        block_rows: rows of a block.
        block_bytes: bytes of the corpus at which a block is full, however few its rows.
    """

    def blocks(item: ShardWork) -> float:
        return _blocks(item, block_rows, block_bytes)

    if len(work) < _EACH * processes:
        work = [piece for item in work for piece in _pieces(item, processes, blocks(item))]
    left = sum(map(blocks, work))
    held: list[ShardWork] = []
    size = 0.0
    for item in work:
        held.append(item)
        size += blocks(item)
        if size >= min(1.0, max(_LEAST, left / (2 * processes))):
            yield held
            left -= size
            held, size = [], 0.0
    if held:
        yield held


def left_of(given: Iterable[ShardWork], coverage: Coverage) -> list[ShardWork]:
    """What is left of work that was given to somebody, now that more of it is settled: the others' pieces of a shard
    that was cut stay theirs."""
    now = [replace(item, done=(*item.done, *coverage.ranges(item.shard_id))) for item in given]
    return [
        item
        for item in now
        if not coverage.is_complete(item.shard_id, item.shard.rows) and _rows_left(item, unknown=1) > 0
    ]


def _rows_left(item: ShardWork, unknown: int) -> int:
    if item.shard.rows is None:
        return unknown
    left, reached = item.shard.rows, 0
    for start, stop in sorted(item.done):
        left -= max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return left


def _blocks(item: ShardWork, block_rows: int, block_bytes: int) -> float:
    """Blocks that what is left of a shard makes, one where nobody knows its rows."""
    rows = item.shard.rows
    if rows is None:
        return 1.0
    left = _rows_left(item, unknown=0)
    return max(left / block_rows, item.shard.size_bytes * left / max(1, rows) / block_bytes)


def _pieces(item: ShardWork, processes: int, blocks: float) -> Iterator[ShardWork]:
    """The shard, of so many blocks, in pieces of about a block or more: to each, the rest is as good as settled."""
    rows = item.shard.rows or 0
    parts = min(processes, math.ceil(blocks), rows)
    if parts < 2:
        yield item
        return
    cuts = [rows * part // parts for part in range(parts + 1)]
    for start, stop in pairwise(cuts):
        others = tuple(r for r in ((0, start), (stop, rows)) if r[0] < r[1])
        yield replace(item, done=(*item.done, *others))
