"""An embed run as data, and the stages built from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa

from encoders.description import Description
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.identity import picture_digest_of
from pipelines.ingest.planning import block_rows
from pipelines.ingest.sink.queueing import COMMIT_ROWS
from pipelines.ingest.sink.staging import NO_FILES, Files
from pipelines.ingest.stages.decoding import DecodeSettings
from pipelines.ingest.stages.encoding import EncodeSettings
from pipelines.ingest.stages.pipeline import Stages
from pipelines.ingest.stages.pools import PoolPlan
from pipelines.ingest.stages.reading import ReadSettings
from pipelines.ingest.stages.reuse import KnownVectors
from pipelines.sources import Corpus
from pipelines.store.storage import TableRef


def rows_of_a_block(description: Description, settings: EmbedSettings, gpus: float = 0.0) -> int:
    """The number of rows in a block.

    Args:
        description: the encoder. Its input size limits the rows of a block.
        settings: the settings of the run. Their `block_rows`, if set, overrides the computed number.
        gpus: number of GPUs of the cluster. With many GPUs, blocks are larger.

    Returns:
        A number not above the rows of a commit, because a block is staged as a whole.
    """
    transform = description.image_transform if "image" in settings.modalities else None
    return min(
        settings.block_rows or block_rows(transform.pixel_bytes if transform else 0, gpus),
        settings.commit_rows or COMMIT_ROWS,
    )


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """An embed run, without the remaining work and without the engine.

    Attributes:
        source: the corpus.
        description: the encoder's card and image transform.
        settings: the settings of the run.
        table: the table to write.
        schema: the table's schema.
        files: the corpus' files, by which staging finds the rows that new ones replace.
    """

    source: Corpus
    description: Description
    settings: EmbedSettings
    table: TableRef
    schema: pa.Schema
    files: Files = NO_FILES


def build_stages(job: EmbedJob, pools: PoolPlan, block_rows: int, known: KnownVectors | None = None) -> Stages:
    """Build the stages of a run.

    Args:
        job: the run.
        pools: number and resources of the worker processes or actors.
        block_rows: number of rows in a block.
        known: vectors that the table already holds and the run can reuse; None reuses none.
    """
    settings = job.settings
    return Stages(
        source=job.source,
        storage=settings.corpus_storage,
        known=known,
        reading=ReadSettings(
            root=job.source.listing.root,
            keyed=settings.columns.key is not None,
            needs=settings.needs,
            fetch=_has_pictures(job.description, settings),
            block_rows=block_rows,
            picture_digest=picture_digest_of(job.schema),
        ),
        decoding=_decode_settings(job.description, settings),
        encoding=_encode_settings(job.description, settings, pools),
        table=job.table,
        schema=job.schema,
        files=job.files,
        pools=pools,
    )


def _decode_settings(description: Description, settings: EmbedSettings) -> DecodeSettings | None:
    """The settings of the decode stage; None if no pictures are embedded."""
    if description.image_transform is None or not _has_pictures(description, settings):
        return None
    return DecodeSettings(
        transform=description.image_transform,
        mode=settings.options.preprocessing,
        max_pixels=settings.max_pixels,
        thumbnail_px=settings.thumbnail_px,
        timeout_s=settings.decode_timeout_s,
    )


def _encode_settings(description: Description, settings: EmbedSettings, pools: PoolPlan) -> EncodeSettings:
    """The settings of an encode actor."""
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
