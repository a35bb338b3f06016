"""Thumbnails: small JPEGs for result pages."""

from __future__ import annotations

import io

from PIL import Image

from encoders.images.decode import MAX_PIXELS, open_image

_QUALITY = 82


def thumbnail(data: bytes, max_side: int = 160, max_pixels: int = MAX_PIXELS) -> bytes:
    """The picture as a JPEG whose longer side is at most `max_side` pixels.

    Raises:
        ImageError: see `open_image`.
    """
    return thumbnail_of(open_image(data, max_pixels=max_pixels, target=(max_side, max_side)), max_side)


def thumbnail_of(image: Image.Image, max_side: int) -> bytes:
    """`thumbnail` of an RGB picture that is already decoded; the picture is shrunk in place."""
    image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
