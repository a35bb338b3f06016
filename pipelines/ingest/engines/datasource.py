"""The corpus as a Ray Data datasource: one read task a group of shards, blocks cut by us."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
from ray.data import DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipelines.ingest.stages.reading import ReadSettings, ShardWork
from pipelines.ingest.stages.reuse import KnownVectors, read_envelopes
from pipelines.sources.base import Source
from pipelines.store.storage import Storage


class CorpusDatasource(Datasource):
    """Blocks of a corpus. The fan-out is ours: Ray's own Parquet reader makes one task of one large file."""

    def __init__(
        self,
        source: Source,
        groups: Sequence[list[ShardWork]],
        settings: ReadSettings,
        storage: Storage,
        known: KnownVectors | None = None,
    ) -> None:
        self._source = source
        self._groups = groups
        self._settings = settings
        self._storage = storage
        self._known = known

    def get_name(self) -> str:
        """The name that Ray shows for the read stage."""
        return "Corpus"

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes to read."""
        return sum(work.shard.size_bytes for group in self._groups for work in group)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task a group; `parallelism` was decided when the groups were made."""
        return [self._task(group, per_task_row_limit) for group in self._groups]

    def _task(self, group: list[ShardWork], row_limit: int | None) -> ReadTask:
        source, settings, storage, known = self._source, self._settings, self._storage, self._known

        def read() -> Iterable[pa.Table]:
            return read_envelopes(source, group, settings, storage, known)

        rows = [work.shard.rows for work in group]
        metadata = BlockMetadata(
            num_rows=sum(r for r in rows if r) if all(r is not None for r in rows) else None,
            size_bytes=sum(work.shard.size_bytes for work in group),
            exec_stats=None,
            input_files=tuple(dict.fromkeys(work.shard.uri for work in group[:8])),
        )
        return ReadTask(read, metadata, per_task_row_limit=row_limit)
