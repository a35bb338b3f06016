"""The Ray Data graph read → decode → encode."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import ray
from ray.data import ActorPoolStrategy, Dataset

from encoders.description import Description
from pipelines.embedding.datasource import CorpusDatasource
from pipelines.embedding.decoding import DecodeSettings, decode_envelope
from pipelines.embedding.encoding import EncodeBlocks, EncodeSettings
from pipelines.embedding.identity import corpus_root
from pipelines.embedding.planning import PoolPlan, block_rows
from pipelines.embedding.reading import ReadSettings, ShardWork
from pipelines.embedding.reuse import KnownVectors
from pipelines.embedding.settings import EmbedSettings
from pipelines.sources.base import Source


def rows_of_a_block(description: Description, settings: EmbedSettings) -> int:
    """Rows of a block: as configured, else what keeps its pixels within bounds."""
    transform = description.image_transform if "image" in settings.modalities else None
    return settings.block_rows or block_rows(transform.pixel_bytes if transform else 0)


def read_settings(uris: Iterable[str], description: Description, settings: EmbedSettings) -> ReadSettings:
    """What the read stage of a run needs to know; `uris` are the files of the corpus that it reads."""
    return ReadSettings(
        root=corpus_root(settings.corpus, uris),
        keyed=settings.columns.key is not None,
        needs=settings.needs,
        fetch=_has_pictures(description, settings),
        block_rows=rows_of_a_block(description, settings),
    )


def decode_settings(description: Description, settings: EmbedSettings) -> DecodeSettings | None:
    """What the decode stage needs to know, None where no pictures are embedded."""
    if description.image_transform is None or not _has_pictures(description, settings):
        return None
    return DecodeSettings(
        transform=description.image_transform,
        mode=settings.options.preprocessing,
        max_pixels=settings.max_pixels,
        thumbnail_px=settings.thumbnail_px,
        timeout_s=settings.decode_timeout_s,
    )


def encode_settings(description: Description, settings: EmbedSettings, pools: PoolPlan) -> EncodeSettings:
    """What an encode actor needs to know."""
    threads = settings.options.threads or pools.threads_per_actor
    return EncodeSettings(
        spec=description.card.spec,
        options=replace(settings.options, threads=threads),
        modalities=settings.modalities,
        vector_dtype=settings.vector_dtype,
        fingerprint=description.card.fingerprint,
    )


def _has_pictures(description: Description, settings: EmbedSettings) -> bool:
    return "image" in settings.modalities and description.image_transform is not None


def build_dataset(
    source: Source,
    groups: list[list[ShardWork]],
    description: Description,
    settings: EmbedSettings,
    pools: PoolPlan,
    known: KnownVectors | None = None,
) -> Dataset:
    """The lazy Ray Data pipeline read → decode → encode. A batch is one envelope, which holds one block."""
    read = read_settings((work.shard.uri for group in groups for work in group), description, settings)
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
