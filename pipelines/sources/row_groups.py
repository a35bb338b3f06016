"""Cuts the row groups of a Parquet file into shards. The cuts depend on the file alone, never on the machine."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.sources.base import CorpusShard
from pipelines.sources.empty import empty_shard
from pipelines.sources.listing import FileInfo

MAX_SHARD_BYTES = 32 << 20
MAX_SHARD_ROWS = 16_384
MIN_SHARDS = 16


def cut_shards(info: FileInfo, groups: Sequence[tuple[int, int]]) -> list[CorpusShard]:
    """Contiguous row groups packed into shards.

    Shards are bounded to 32 MiB and 16,384 rows. There are at least 16 of them if the file has that many row groups, so
    that many tasks can read a file of many small row groups. A file without rows is one shard.

    Args:
        info: the file.
        groups: (rows, compressed bytes) of each row group.
    """
    groups_each = max(1, len(groups) // MIN_SHARDS)
    shards: list[CorpusShard] = []
    start = first = rows = size = 0
    for i, (group_rows, group_bytes) in enumerate(groups):
        full = i - start >= groups_each or size + group_bytes > MAX_SHARD_BYTES or rows + group_rows > MAX_SHARD_ROWS
        if i > start and full:
            shards.append(_shard(info, start, i, first, rows, size))
            start, first, rows, size = i, first + rows, 0, 0
        rows, size = rows + group_rows, size + group_bytes
    shards.append(_shard(info, start, len(groups), first, rows, size))
    return [shard for shard in shards if shard.rows] or [empty_shard(info)]


def _shard(info: FileInfo, start: int, stop: int, first: int, rows: int, size: int) -> CorpusShard:
    return CorpusShard(
        uri=info.uri, version=info.version, start=start, stop=stop, first_row=first, rows=rows, size_bytes=size
    )
