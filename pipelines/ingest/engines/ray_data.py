"""The stages on Ray Data: read tasks, decode tasks, encode actors, staging tasks; the driver sees references."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from encoders.description import Description
from pipelines.cluster import session
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.engines.datasource import CorpusDatasource
from pipelines.ingest.engines.job import EmbedJob, Ran
from pipelines.ingest.engines.streaming import StreamingSink
from pipelines.ingest.planning import PoolPlan, plan_work
from pipelines.ingest.sink.queueing import CommitQueue
from pipelines.ingest.stage_settings import decode_settings, encode_settings, read_settings
from pipelines.ingest.stages.decoding import decode_envelope
from pipelines.ingest.stages.encoding import EncodeBlocks
from pipelines.ingest.stages.reading import ShardWork
from pipelines.ingest.stages.reuse import KnownVectors, known_vectors
from pipelines.sources.base import Source


def build_dataset(
    source: Source,
    groups: list[list[ShardWork]],
    description: Description,
    settings: EmbedSettings,
    pools: PoolPlan,
    schema: pa.Schema,
    block_rows: int,
    known: KnownVectors | None = None,
) -> Dataset:
    """The lazy Ray Data pipeline read → decode → encode. A batch is one envelope, which holds one block."""
    uris = (work.shard.uri for group in groups for work in group)
    read = read_settings(uris, description, settings, schema, block_rows)
    dataset = ray.data.read_datasource(
        CorpusDatasource(source, groups, read, settings.corpus_storage, known),
        override_num_blocks=len(groups),
        num_cpus=pools.cpus_per_read,
    )
    decode = decode_settings(description, settings)
    if decode is not None:
        dataset = dataset.map_batches(
            decode_envelope,
            fn_kwargs={"settings": decode},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pools.cpus_per_decode,
        )
    return dataset.map_batches(
        EncodeBlocks,
        fn_constructor_args=(encode_settings(description, settings, pools),),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=pools.actors),
        num_cpus=pools.cpus_per_actor,
        num_gpus=pools.gpus_per_actor or None,
        memory=settings.actor_memory_bytes,
    )


def run_stages(job: EmbedJob, work: list[ShardWork], queue: CommitQueue, progress: Callable[[int], None]) -> Ran:
    """Run the stages over all of the work, and commit it.

    Args:
        job: the run.
        work: what is left of it.
        queue: commits what is staged.
        progress: called with the rows of the queue, and those that are on their way there.

    Raises:
        ValueError: actors or GPUs were asked for that the cluster has not got.
        OSError: a store failed, in whatever process.
    """
    settings = job.settings
    session.ensure_ray()
    session.configure_data_context(progress=False)
    resources = session.cluster_resources()
    groups, pools = plan_work(
        work, resources, queue.limits.block_rows, actors=settings.actors, gpus_per_actor=settings.gpus_per_actor
    )
    known = known_vectors(job.table, settings)
    rows = queue.limits.block_rows
    dataset = build_dataset(job.source, groups, job.description, settings, pools, job.schema, rows, known)
    sink = StreamingSink(queue, job.table, job.schema, job.files)
    with session.plain_errors():
        for refs, count in _encoded_blocks(dataset):
            sink.add(refs, count)
            progress(int(sink.rows))
        sink.finish()
    progress(int(sink.rows))
    return Ran(
        engine="ray",
        cores=max(1, int(resources.cpus)),
        actors=pools.actors,
        read_tasks=len(groups),
        gpus=pools.actors * pools.gpus_per_actor,
    )


def _encoded_blocks(dataset: Dataset) -> Iterator[tuple[list[Any], int]]:
    """References to the output blocks as they come, with how many of ours they hold (an envelope is a row)."""
    for bundle in dataset.iter_internal_ref_bundles():
        yield list(bundle.block_refs), bundle.num_rows() or 0
