"""The corpus as a Ray Data datasource, with one read task for each group of shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
from ray.data import DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipelines.ingest.stages.pipeline import Stages
from pipelines.ingest.stages.reading import ShardWork
from pipelines.rows.blocks import wrap
from pipelines.store.memory import freed_memory


class CorpusDatasource(Datasource):
    """Blocks of a corpus. Each group is a read task; Ray's own Parquet reader would make one task of a large file.

    Args:
        stages: the stages of the run.
        groups: the shards of each read task.
    """

    def __init__(self, stages: Stages, groups: Sequence[list[ShardWork]]) -> None:
        self._stages = stages
        self._groups = groups

    def get_name(self) -> str:
        """The name that Ray shows for the read stage."""
        return "Corpus"

    def estimate_inmemory_data_size(self) -> int | None:
        """Size of the shards in bytes."""
        return sum(work.shard.size_bytes for group in self._groups for work in group)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task for each group. Ray's `parallelism` is ignored, because the groups are already cut."""
        return [self._task(group, per_task_row_limit) for group in self._groups]

    def _task(self, group: list[ShardWork], row_limit: int | None) -> ReadTask:
        stages = self._stages

        def read() -> Iterable[pa.Table]:
            return map(_wrapped, stages.read(group))

        rows = [work.shard.rows for work in group]
        metadata = BlockMetadata(
            num_rows=sum(r for r in rows if r) if all(r is not None for r in rows) else None,
            size_bytes=sum(work.shard.size_bytes for work in group),
            exec_stats=None,
            input_files=tuple(dict.fromkeys(work.shard.uri for work in group[:8])),
        )
        return ReadTask(read, metadata, per_task_row_limit=row_limit)


def _wrapped(block: pa.Table) -> pa.Table:
    freed_memory().give_back()
    return wrap(block)
