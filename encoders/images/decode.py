"""Bytes to RGB, for what real corpora hold.

The header is read first: kind and size are known before a pixel is decoded, so that a decompression bomb costs
nothing. Whatever the codec raises comes out as an `ImageError`.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from encoders.images.errors import ImageError

MAX_PIXELS = 100_000_000
# A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as it stays this many times larger than needed:
# the resampling filter then still sees detail finer than the target's pixels (cosine >= 0.999 is tested).
_DRAFT_FACTOR = 2
_TRUNCATED_WORDS = ("truncat", "end of", "unexpected eof", "broken data stream", "incomplete", "not enough")
_TAIL_BYTES = 1024
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_WHITE = (255, 255, 255)

# The limit is checked here, on the header; PIL's own would warn at one size and raise at another.
Image.MAX_IMAGE_PIXELS = None


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS, target: tuple[int, int] | None = None) -> Image.Image:
    """The picture as RGB, upright; the first frame of an animation.

    Transparency is laid on white, because pictures cut out for the web are drawn for white pages, and what lies
    under transparent pixels is arbitrary.

    Args:
        data: the file's bytes.
        max_pixels: larger pictures are refused by their header.
        target: (width, height) that will be needed; a JPEG may then come back smaller than it is, never smaller
            than twice this.

    Raises:
        ImageError: the bytes are empty, no picture, truncated, corrupt, or too large.
    """
    if not data:
        raise ImageError("empty_image", "the picture has no bytes")
    image = _identify(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height} pixels are over the limit of {max_pixels}")
    if width * height == 0:
        raise ImageError("corrupt_image", f"the picture is {width} x {height} pixels")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _to_rgb(_load(image, target))
    except ImageError:
        raise
    except Exception as error:
        raise _as_image_error(error, data) from error


def _identify(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        if kind := _magic(data):
            reason = "truncated_image" if _is_cut(data, str(error)) else "corrupt_image"
            raise ImageError(reason, f"a {kind} file whose header cannot be read") from error
        raise ImageError("not_an_image", f"not a picture: {_looks_like(data)}") from error
    except Exception as error:
        raise _as_image_error(error, data) from error


def _load(image: Image.Image, target: tuple[int, int] | None) -> Image.Image:
    if target is not None and image.format == "JPEG":
        if image.getexif().get(0x0112, 1) >= 5:  # the picture lies on its side
            target = (target[1], target[0])
        image.draft(image.mode, (target[0] * _DRAFT_FACTOR, target[1] * _DRAFT_FACTOR))
    image.load()
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        return _from_deep_grey(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, _WHITE)
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit and floating grey scaled to 8 bits; PIL's own conversion clips at 255, which makes a white picture."""
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=65535.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    if image.mode == "F":
        scale = 255.0 if top <= 1.0 else (1.0 if top <= 255.0 else 255.0 / top)
    else:
        scale = 255.0 / 65535.0 if top <= 65535.0 else 255.0 / top
    grey = np.clip(values * scale, 0, 255).round().astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _as_image_error(error: Exception, data: bytes) -> ImageError:
    if _is_cut(data, str(error)):
        return ImageError("truncated_image", f"the picture is cut short: {error}")
    return ImageError("corrupt_image", f"the picture cannot be decoded: {type(error).__name__}: {error}")


def _is_cut(data: bytes, message: str) -> bool:
    """Whether a file ends too early: by its own marks where its kind has any, else by the codec's words."""
    tail = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
    kind = _magic(data)
    if kind in tail:
        return tail[kind] not in data[-_TAIL_BYTES:]
    if kind == "WebP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return any(word in message.lower() for word in _TRUNCATED_WORDS)


def _magic(data: bytes) -> str | None:
    kinds = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for magic, kind in kinds.items() if data.startswith(magic)), None)


def _looks_like(data: bytes) -> str:
    head = data[:256].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "it looks like an HTML page"
    if head.startswith((b"<svg", b"<?xml")):
        return "it looks like XML or SVG"
    if head.startswith((b"{", b"[")):
        return "it looks like JSON"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "it looks like text"
    return f"it begins with {data[:8]!r}"
