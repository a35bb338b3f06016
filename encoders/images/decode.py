"""Decoding a picture's bytes to RGB, for the formats and defects of real corpora.

The header is read first. Kind and size are then known before a pixel is decoded, so a decompression bomb costs nothing.
Every exception of a codec becomes an `ImageError`.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from encoders.images.errors import ImageError, ImageReason
from encoders.images.kinds import container, is_cut, looks_like

MAX_PIXELS = 100_000_000
# An explicit list: otherwise Pillow tries every format that it knows, and passes a stranger's PostScript to
# Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "ICO", "PPM")
_DRAFTED = ("JPEG", "MPO")  # MPO: a JPEG followed by further views, as many phones write it
# A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if the result is at least this many times larger than needed. The
# resampling filter then still sees detail finer than the target's pixels. Least cosine between embeddings of
# photographs decoded this way and decoded in full, at 224 pixels: .9991 for 3, .996 for 2.75, .990 for 2.
_DRAFT_FACTOR = 3
_TRUNCATED_WORDS = ("truncat", "end of", "unexpected eof", "broken data stream", "incomplete", "not enough")
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_WHITE = (255, 255, 255)
_ORIENTATION = 0x0112
_SIDEWAYS = 5  # EXIF orientations from 5 to 8 swap width and height
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# `read_header` checks the limit on the header; PIL's own check would warn at one size and raise at another.
Image.MAX_IMAGE_PIXELS = None


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS, target: tuple[int, int] | None = None) -> Image.Image:
    """The picture as upright RGB; the first frame of an animation.

    Transparent pictures are placed on white: cut-outs for the web are drawn for white pages, and the colour under
    transparent pixels is arbitrary. A file that lacks its end marker but none of its pixels is accepted.

    Args:
        data: the file's bytes.
        max_pixels: a picture whose header announces more pixels is refused.
        target: the upright (width, height) needed later. A JPEG may then be decoded at reduced scale, but never to less
            than three times this size.

    Raises:
        ImageError: the bytes are empty, not a picture, truncated, corrupt, or announce too many pixels.
    """
    return decode(read_header(data, max_pixels), data, target)


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture with its size and kind known, and its pixels not yet decoded.

    Raises:
        ImageError: the bytes are empty or not a picture, or the header is truncated, corrupt or announces too many
            pixels.
    """
    if not data:
        raise ImageError("empty_image", "the picture has no bytes")
    image = _identify(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height} pixels exceed the limit of {max_pixels}")
    if width * height == 0:
        raise ImageError("corrupt_image", f"the picture is {width} x {height} pixels")
    return image


def decode(header: Image.Image, data: bytes, target: tuple[int, int] | None = None) -> Image.Image:
    """Decode the result of `read_header` to upright RGB; see `open_image`.

    Raises:
        ImageError: the data is truncated or corrupt.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if target is not None:
                _draft(header, target)
            header.load()
            turn = _TURNS.get(_orientation(header))
            image = _to_rgb(header)
            return image if turn is None else image.transpose(turn)
    except Exception as error:
        raise _as_image_error(error, data) from error


def drafted_size(header: Image.Image) -> tuple[int, int] | None:
    """The upright (width, height) of a picture that can be decoded at reduced scale; None for all others."""
    if header.format not in _DRAFTED:
        return None
    width, height = header.size
    return (height, width) if _orientation(header) >= _SIDEWAYS else (width, height)


def _identify(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        if kind := container(data):
            reason: ImageReason = "truncated_image" if is_cut(data) else "corrupt_image"
            raise ImageError(reason, f"a {kind} file whose header cannot be read") from error
        raise ImageError("not_an_image", f"not a picture: {looks_like(data)}") from error
    except Exception as error:
        raise _as_image_error(error, data) from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) if the EXIF data is damaged, because the pixels may be intact."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _draft(image: Image.Image, target: tuple[int, int]) -> None:
    if image.format not in _DRAFTED:
        return
    width, height = target
    if _orientation(image) >= _SIDEWAYS:
        width, height = height, width
    image.draft(image.mode, (width * _DRAFT_FACTOR, height * _DRAFT_FACTOR))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_MODES:
        return _from_deep_grey(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, _WHITE)
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit or float grey scaled to 8 bits; PIL's own conversion clips at 255, which gives a white picture."""
    values = np.asarray(image)
    if values.dtype.kind == "u":
        grey = (values >> 8).astype(np.uint8)
    else:
        grey = _scaled_grey(values.astype(np.float32), whole=values.dtype.kind == "i")
    return Image.fromarray(grey).convert("RGB")


def _scaled_grey(values: np.ndarray, *, whole: bool) -> np.ndarray:
    """Scaled by the apparent range: 16 bits if `whole`, else 0..1 or 0..255; the maximum if it exceeds these."""
    values = np.nan_to_num(values, copy=False, nan=0.0, posinf=65535.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    spans = (65535.0,) if whole else (1.0, 255.0)
    values *= np.float32(255.0 / next((span for span in spans if top <= span), top))
    return values.round(out=values).clip(0, 255, out=values).astype(np.uint8)


def _as_image_error(error: Exception, data: bytes) -> ImageError:
    cut = is_cut(data)
    if cut is None:
        cut = any(word in str(error).lower() for word in _TRUNCATED_WORDS)
    if cut:
        return ImageError("truncated_image", f"the picture is cut short: {error}")
    return ImageError("corrupt_image", f"the picture cannot be decoded: {type(error).__name__}: {error}")
