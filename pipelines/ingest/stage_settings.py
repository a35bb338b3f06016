"""What each stage of a run needs to know, made from the run's own settings: plain data, pickled to the workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pyarrow as pa

from encoders.description import Description
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.identity import corpus_root, picture_digest_of
from pipelines.ingest.planning import PoolPlan, block_rows
from pipelines.ingest.sink.queueing import COMMIT_ROWS
from pipelines.ingest.stages.decoding import DecodeSettings
from pipelines.ingest.stages.encoding import EncodeSettings
from pipelines.ingest.stages.reading import ReadSettings


def rows_of_a_block(description: Description, settings: EmbedSettings, gpus: float = 0.0) -> int:
    """Rows of a block: as configured, else what keeps its pixels within bounds, on a cluster of so many GPUs; and never
    more than a commit may hold, since a block is staged as a whole."""
    transform = description.image_transform if "image" in settings.modalities else None
    return min(
        settings.block_rows or block_rows(transform.pixel_bytes if transform else 0, gpus),
        settings.commit_rows or COMMIT_ROWS,
    )


def read_settings(
    uris: Iterable[str], description: Description, settings: EmbedSettings, schema: pa.Schema, block_rows: int
) -> ReadSettings:
    """What the read stage of a run needs to know.

    Args:
        uris: files of the corpus that it reads.
        description: the encoder.
        settings: of the run.
        schema: the table's.
        block_rows: see `rows_of_a_block`.
    """
    return ReadSettings(
        root=corpus_root(settings.corpus, uris),
        keyed=settings.columns.key is not None,
        needs=settings.needs,
        fetch=_has_pictures(description, settings),
        block_rows=block_rows,
        picture_digest=picture_digest_of(schema),
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
