"""Files that hold no record now. They may have held some, and then their rows must leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.sources.base import CorpusShard
from pipelines.sources.listing import FileInfo


@dataclass(frozen=True, kw_only=True)
class EmptySource:
    """A corpus without records. Its files name no columns, so it fits every table.

    Attributes:
        files: its files.
    """

    files: Sequence[FileInfo]

    def schema(self) -> pa.Schema:
        """No fields."""
        return pa.schema([])

    def modalities(self) -> frozenset[str]:
        """All modalities: its files exclude none."""
        return frozenset({"image", "text"})

    def shards(self) -> list[CorpusShard]:
        """One shard per file, of no rows."""
        return [empty_shard(info) for info in self.files]

    def read(self, shard: CorpusShard) -> Iterator[pa.Table]:
        """Nothing."""
        yield from ()


def empty_shard(info: FileInfo) -> CorpusShard:
    """The shard of a file without records, by which a run sees that the file's older rows are stale."""
    return CorpusShard(uri=info.uri, version=info.version, stop=0, rows=0)
