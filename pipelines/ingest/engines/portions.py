"""Division of work among processes that ask for more when they are done. Pure functions of plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from pipelines.ingest.stages.reading import ShardWork
from pipelines.ledger.coverage import Coverage

# Each process gets its work in at least this many portions if there are enough rows.
_EACH = 8
# Portions get smaller towards the end, so that the processes end together, but not below this part of a block.
_LEAST = 1 / 8


def portions(work: Sequence[ShardWork], processes: int, block_rows: int, block_bytes: int) -> Iterator[list[ShardWork]]:
    """Divide the work, in corpus order, into portions of up to about one block, and smaller ones at the end.

    No portion is larger than half of an even share of the remaining work (guided self-scheduling: Polychronopoulos and
    Kuck, 1987). A process that reads any record of a shard reads the whole shard. So shards are cut only if there are
    too few for the processes to end together, and into no more pieces than there are processes.

    Args:
        work: shards, each with the ranges of its settled records.
        processes: number of processes that will ask for work.
        block_rows: the most rows in a block.
        block_bytes: bytes of the corpus at which a block is full, even with fewer rows.
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
    """The part of the work given to one process that is not settled yet.

    Pieces of a cut shard that other processes have count as settled, so they are not done twice.

    Args:
        given: the work that the process got.
        coverage: the records that are settled by now.
    """
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
    """Number of blocks in the rest of a shard; 1 if its rows are unknown."""
    rows = item.shard.rows
    if rows is None:
        return 1.0
    left = _rows_left(item, unknown=0)
    return max(left / block_rows, item.shard.size_bytes * left / max(1, rows) / block_bytes)


def _pieces(item: ShardWork, processes: int, blocks: float) -> Iterator[ShardWork]:
    """Cut a shard of this many blocks into pieces of a block or so. Each counts all other records as settled."""
    rows = item.shard.rows or 0
    parts = min(processes, math.ceil(blocks), rows)
    if parts < 2:
        yield item
        return
    cuts = [rows * part // parts for part in range(parts + 1)]
    for start, stop in pairwise(cuts):
        others = tuple(r for r in ((0, start), (stop, rows)) if r[0] < r[1])
        yield replace(item, done=(*item.done, *others))
