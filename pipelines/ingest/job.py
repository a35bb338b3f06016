"""An embed run as data, and the stages that are built from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pyarrow as pa

from encoders.description import Description
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.identity import corpus_root, picture_digest_of
from pipelines.ingest.planning import block_rows
from pipelines.ingest.sink.queueing import COMMIT_ROWS
from pipelines.ingest.sink.staging import NO_FILES, Files
from pipelines.ingest.stages.decoding import DecodeSettings
from pipelines.ingest.stages.encoding import EncodeSettings
from pipelines.ingest.stages.pipeline import Stages
from pipelines.ingest.stages.pools import PoolPlan
from pipelines.ingest.stages.reading import ReadSettings
from pipelines.ingest.stages.reuse import KnownVectors
from pipelines.sources.base import Source
from pipelines.store.storage import TableRef


def rows_of_a_block(description: Description, settings: EmbedSettings, gpus: float = 0.0) -> int:
    """Rows of a block.

    Args:
        description: the encoder, whose input size bounds the rows that fit in a block.
        settings: of the run; `block_rows` wins.
        gpus: of the cluster; with many, blocks are larger.

    Returns:
        At most the rows of a commit, because a block is staged as a whole.
    """
    transform = description.image_transform if "image" in settings.modalities else None
    return min(
        settings.block_rows or block_rows(transform.pixel_bytes if transform else 0, gpus),
        settings.commit_rows or COMMIT_ROWS,
    )


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """An embed run, apart from the work that is left of it and the engine that does it.

    Attributes:
        source: the corpus.
        description: the encoder's card and image transform.
        settings: what the user asked for.
        table: where the rows go.
        schema: the table's schema.
        files: the corpus' files, by which staging tells rows that replace others.
    """

    source: Source
    description: Description
    settings: EmbedSettings
    table: TableRef
    schema: pa.Schema
    files: Files = NO_FILES


def build_stages(
    job: EmbedJob, uris: Iterable[str], pools: PoolPlan, block_rows: int, known: KnownVectors | None = None
) -> Stages:
    """The stages of a run.

    Args:
        job: the run.
        uris: files of the corpus that it reads.
        pools: how many processes or actors run the stages.
        block_rows: rows of a block.
        known: vectors that the table already holds.
    """
    settings = job.settings
    return Stages(
        source=job.source,
        storage=settings.corpus_storage,
        known=known,
        reading=ReadSettings(
            root=corpus_root(settings.corpus, uris),
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


def _encode_settings(description: Description, settings: EmbedSettings, pools: PoolPlan) -> EncodeSettings:
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
