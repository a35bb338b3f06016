"""The Ray Data graph read → decode → encode."""

from __future__ import annotations

from dataclasses import replace

import ray
from encoders.registry import Description
from ray.data import ActorPoolStrategy, Dataset

from pipelines.embedding.datasource import CorpusDatasource
from pipelines.embedding.decoding import DecodeSettings, decode_block
from pipelines.embedding.encoding import EncodeBlocks, EncodeSettings
from pipelines.embedding.identity import corpus_root
from pipelines.embedding.planning import PoolPlan, block_rows
from pipelines.embedding.reading import ReadSettings, ShardWork
from pipelines.embedding.settings import EmbedSettings
from pipelines.sources.base import Source


def build_dataset(
    source: Source,
    groups: list[list[ShardWork]],
    description: Description,
    settings: EmbedSettings,
    pools: PoolPlan,
) -> Dataset:
    """The lazy Ray Data pipeline read → decode → encode. Each stage keeps the blocks as they are cut."""
    images = "image" in settings.modalities and description.image_transform is not None
    pixel_bytes = description.image_transform.pixel_bytes if images and description.image_transform else 0
    read = ReadSettings(
        root=corpus_root(settings.corpus),
        keyed=settings.columns.key is not None,
        needs=settings.needs,
        fetch=images,
        block_rows=settings.block_rows or block_rows(pixel_bytes),
    )
    dataset = ray.data.read_datasource(
        CorpusDatasource(source, groups, read, settings.corpus_storage),
        override_num_blocks=len(groups),
        num_cpus=pools.cpus_per_read,
    )
    if images and description.image_transform is not None:
        decode = DecodeSettings(
            transform=description.image_transform,
            mode=settings.options.preprocessing,
            max_pixels=settings.max_pixels,
            thumbnail_px=settings.thumbnail_px,
        )
        dataset = dataset.map_batches(
            decode_block,
            fn_kwargs={"settings": decode},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=pools.cpus_per_decode,
        )
    threads = settings.options.threads or pools.threads_per_actor
    encode = EncodeSettings(
        spec=description.card.spec,
        options=replace(settings.options, threads=threads),
        modalities=settings.modalities,
        vector_dtype=settings.vector_dtype,
        fingerprint=description.card.fingerprint,
    )
    # The public map_batches insists on a batch size where there are GPUs, and then cuts blocks; the encoder makes its
    # own batches within a block, which must stay whole because a picture's pixels stand on its first row only.
    return dataset.map_batches_internal(
        EncodeBlocks,
        fn_constructor_args=(encode,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=pools.actors),
        num_cpus=pools.cpus_per_actor,
        num_gpus=pools.gpus_per_actor or None,
        memory=settings.actor_memory_bytes,
    )
