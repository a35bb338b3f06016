"""The decode stage: turns picture bytes into the uint8 pixels that the encoder reads. CPU tasks, no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.images import ImageError, ImageTransform, prepare, prepare_with_thumbnail
from encoders.protocol import Preprocessing
from pipelines.ingest.stages.recent import recent_vectors
from pipelines.rows.blocks import (
    HEIGHT,
    KNOWN_PREFIX,
    PIXELS,
    WIDTH,
    Rejections,
    as_binary,
    unwrap_one,
    valid_rows,
    views,
    with_seconds,
    wrap,
)
from pipelines.rows.contract import IMAGE, PICTURE, THUMBNAIL, Stage
from pipelines.store.faults import fault
from pipelines.store.memory import freed_memory


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """Settings of the decode stage: plain data, pickled to the workers.

    Attributes:
        transform: the encoder's image transform: size, crop, filter, mean and standard deviation.
        mode: `fast` decodes large JPEGs at reduced scale; `exact` equals the model family's own processor.
        max_pixels: pictures with more pixels are rejected.
        thumbnail_px: side of the thumbnail in pixels; 0 makes none.
        timeout_s: longest time that a picture may take to decode, in seconds.
    """

    transform: ImageTransform
    mode: Preprocessing
    max_pixels: int
    thumbnail_px: int = 0
    timeout_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A picture's pixels, uint8 (height, width, 3), and its thumbnail if one is wanted."""

    pixels: NDArray[np.uint8]
    thumbnail: bytes | None


Decode = Callable[[bytes, str, DecodeSettings], Decoded]


def decode_picture(data: bytes, picture: str, settings: DecodeSettings) -> Decoded:
    """A picture as the encoder reads it.

    Args:
        data: the picture's bytes.
        picture: their digest.
        settings: the encoder's image transform and the limits.

    Raises:
        ImageError: it cannot be decoded.
    """
    fault("picture", picture)
    transform, mode, max_pixels = settings.transform, settings.mode, settings.max_pixels
    if not settings.thumbnail_px:
        return Decoded(pixels=prepare(data, transform, mode, max_pixels), thumbnail=None)
    pixels, small = prepare_with_thumbnail(data, transform, mode, max_pixels, settings.thumbnail_px)
    return Decoded(pixels=pixels, thumbnail=small)


def decode_envelope(envelope: pa.Table, settings: DecodeSettings) -> pa.Table:
    """`decode_safely` as Ray Data calls it."""
    freed_memory().give_back()
    return wrap(decode_safely(unwrap_one(envelope), settings))


def decode_safely(block: pa.Table, settings: DecodeSettings) -> pa.Table:
    """`decode_block` with a guard against pictures that hang or crash their decoder.

    Pictures that this process encoded recently are not decoded again.
    """
    from pipelines.ingest.stages.guarding import decode_apart, decode_guarded, process_journal

    journal = process_journal()
    suspects = journal.suspects()

    def decode(data: bytes, picture: str, settings: DecodeSettings) -> Decoded:
        if picture in suspects:
            return decode_apart(data, picture, settings)
        return decode_guarded(data, picture, settings, journal)

    block = recent_vectors().attach(block, keep_pictures=settings.thumbnail_px > 0)
    return decode_block(block, settings, decode)


def decode_block(block: pa.Table, settings: DecodeSettings, decode: Decode = decode_picture) -> pa.Table:
    """The block with pixels in place of bytes. A picture that cannot be decoded rejects all of its rows.

    Args:
        block: a block of the read stage.
        settings: the encoder's image transform and the limits.
        decode: the function that decodes a picture.

    Returns:
        The block without `IMAGE`, with `PIXELS` (bytes of a uint8 (height, width, 3) array, on the first row of each
        picture), `HEIGHT` and `WIDTH`, and a thumbnail if wanted.
    """
    started = time.perf_counter()
    fault("decode")
    pictures = block[PICTURE].to_pylist()
    rejections = Rejections(block, Stage.DECODE)
    pixels: list[NDArray[np.uint8] | None] = [None] * block.num_rows
    thumbnails: dict[str, bytes | None] = {}
    failures: dict[str, ImageError] = {}
    # One picture's bytes at a time: the next one reuses their memory.
    for row, view in zip(valid_rows(block[IMAGE]), views(block[IMAGE]), strict=True):
        try:
            decoded = decode(view.to_pybytes(), pictures[row], settings)
            pixels[row], thumbnails[pictures[row]] = decoded.pixels, decoded.thumbnail
        except ImageError as error:
            failures[pictures[row]] = error
    for row, picture in enumerate(pictures):
        if picture in failures:
            rejections.add(row, failures[picture].reason, str(failures[picture]))
    block = _with_pixels(rejections.apply().drop_columns([IMAGE]), pixels)
    if settings.thumbnail_px:
        block = _with_thumbnails(block, [thumbnails.get(p) for p in pictures])
    return with_seconds(block, "decode", time.perf_counter() - started)


def _with_thumbnails(block: pa.Table, made: list[bytes | None]) -> pa.Table:
    """The new thumbnails; where there is none, the one that the table holds of the same picture."""
    known = KNOWN_PREFIX + THUMBNAIL
    if known in block.column_names:
        made = [new or old for new, old in zip(made, block[known].to_pylist(), strict=True)]
        block = block.drop_columns([known])
    return block.append_column(THUMBNAIL, pa.array(made, pa.binary()))


def _with_pixels(block: pa.Table, pixels: list[NDArray[np.uint8] | None]) -> pa.Table:
    sizes = [None if p is None else p.shape[:2] for p in pixels]
    block = block.append_column(PIXELS, as_binary(pixels))
    for axis, name in enumerate((HEIGHT, WIDTH)):
        block = block.append_column(name, pa.array([None if s is None else s[axis] for s in sizes], pa.int32()))
    return block


def read_pixels(block: pa.Table) -> tuple[list[int], list[NDArray[np.uint8]]]:
    """The rows of a decoded block that carry pixels, and the pixels as (height, width, 3) uint8 views, not copies."""
    heights, widths = block[HEIGHT].to_pylist(), block[WIDTH].to_pylist()
    rows = valid_rows(block[PIXELS])
    arrays = [
        np.frombuffer(view, np.uint8).reshape(heights[row], widths[row], 3)
        for row, view in zip(rows, views(block[PIXELS]), strict=True)
    ]
    return rows, arrays
