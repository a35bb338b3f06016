"""The stages on Ray Data: read tasks, decode tasks, encode actors, staging tasks. The driver holds only references."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset

from pipelines.cluster import session
from pipelines.cluster.resources import Resources
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.engines.datasource import CorpusDatasource
from pipelines.ingest.engines.protocol import EnginePlan, Ran
from pipelines.ingest.engines.streaming import StreamingSink
from pipelines.ingest.planning import group_work, plan_pools, plan_work
from pipelines.ingest.sink.queueing import CommitQueue
from pipelines.ingest.stages.decoding import decode_envelope
from pipelines.ingest.stages.encoding import EncodeBlocks
from pipelines.ingest.stages.pipeline import Stages
from pipelines.ingest.stages.reading import ShardWork


class RayEngine:
    """Runs the stages on Ray: the session of this process, the cluster at `RAY_ADDRESS`, or a new one on this machine.

    Args:
        settings: the settings of the run, with the actors, their GPUs and their memory.
    """

    def __init__(self, settings: EmbedSettings) -> None:
        self._settings = settings

    def resources(self) -> Resources:
        """CPUs and GPUs of all nodes. Starts Ray if it is not running."""
        session.ensure_ray()
        return session.cluster_resources()

    def plan(self, work: Sequence[ShardWork], block_rows: int) -> EnginePlan:
        """See `Engine.plan`."""
        settings = self._settings
        _, pools = plan_work(
            work, self.resources(), block_rows, actors=settings.actors, gpus_per_actor=settings.gpus_per_actor
        )
        return EnginePlan(pools=pools, block_rows=block_rows)

    def run(self, stages: Stages, work: list[ShardWork], queue: CommitQueue, progress: Callable[[int], None]) -> Ran:
        """See `Engine.run`."""
        settings, resources = self._settings, self.resources()
        session.configure_data_context(progress=False)
        most = plan_pools(resources, actors=settings.actors, gpus_per_actor=settings.gpus_per_actor).actors
        groups = group_work(work, most)
        dataset = build_dataset(stages, groups, memory=settings.actor_memory_bytes)
        sink = StreamingSink(queue, stages.table, stages.schema, stages.files)
        with session.plain_errors():
            for refs, count in _encoded_blocks(dataset):
                sink.add(refs, count)
                progress(int(sink.rows))
            sink.finish()
        progress(int(sink.rows))
        return Ran(
            engine="ray",
            cores=max(1, int(resources.cpus)),
            actors=stages.pools.actors,
            read_tasks=len(groups),
            gpus=stages.pools.actors * stages.pools.gpus_per_actor,
        )


def build_dataset(stages: Stages, groups: list[list[ShardWork]], *, memory: int | None = None) -> Dataset:
    """The lazy Ray Data pipeline read → decode → encode. Each batch is one envelope, which holds one block.

    Args:
        stages: the stages of the run.
        groups: the shards of each read task.
        memory: bytes that Ray reserves for each encode actor; None reserves none.
    """
    pools = stages.pools
    dataset = ray.data.read_datasource(
        CorpusDatasource(stages, groups), override_num_blocks=len(groups), num_cpus=pools.cpus_per_read
    )
    if stages.decoding is not None:
        dataset = dataset.map_batches(
            decode_envelope,
            fn_kwargs={"settings": stages.decoding},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pools.cpus_per_decode,
        )
    return dataset.map_batches(
        EncodeBlocks,
        fn_constructor_args=(stages.encoding,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=pools.actors),
        num_cpus=pools.cpus_per_actor,
        num_gpus=pools.gpus_per_actor or None,
        memory=memory,
    )


def _encoded_blocks(dataset: Dataset) -> Iterator[tuple[list[Any], int]]:
    """References to Ray's output blocks as they arrive, and the number of our blocks in them (one per row)."""
    for bundle in dataset.iter_internal_ref_bundles():
        yield list(bundle.block_refs), bundle.num_rows() or 0
