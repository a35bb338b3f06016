"""Bytes to RGB, for what real corpora hold.

The header is read first: kind and size are known before a pixel is decoded, so that a decompression bomb costs
nothing. Whatever the codec raises comes out as an `ImageError`.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from encoders.images.errors import ImageError, ImageReason
from encoders.images.kinds import container, is_cut, looks_like

MAX_PIXELS = 100_000_000
# Named, because Pillow would else try everything it knows, and hand PostScript from a stranger to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "ICO", "PPM")
_DRAFTED = ("JPEG", "MPO")  # MPO: a JPEG with further views behind it, as many phones write
# A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as it stays this many times larger than needed:
# the resampling filter then still sees detail finer than the target's pixels. Least cosine of embeddings of
# photographs to those of full decoding, at 224 pixels: .9991 for 3, .996 for 2.75, .990 for 2.
_DRAFT_FACTOR = 3
_TRUNCATED_WORDS = ("truncat", "end of", "unexpected eof", "broken data stream", "incomplete", "not enough")
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_WHITE = (255, 255, 255)
_ORIENTATION = 0x0112
_SIDEWAYS = 5  # EXIF orientations from here on swap width and height
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The limit is checked here, on the header; PIL's own would warn at one size and raise at another.
Image.MAX_IMAGE_PIXELS = None


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS, target: tuple[int, int] | None = None) -> Image.Image:
    """The picture as RGB, upright; the first frame of an animation.

    Transparency is laid on white, because pictures cut out for the web are drawn for white pages, and what lies
    under transparent pixels is arbitrary. A file that lacks its end mark but none of its pixels is accepted.

    Args:
        data: the file's bytes.
        max_pixels: larger pictures are refused by their header.
        target: (width, height) that will be needed, upright; a JPEG may then come back smaller than it is, never
            smaller than three times this.

    Raises:
        ImageError: the bytes are empty, no picture, truncated, corrupt, or too large.
    """
    return decode(read_header(data, max_pixels), data, target)


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture with its size and kind known and its pixels not yet decoded.

    Raises:
        ImageError: the bytes are empty, no picture, or the header is cut, damaged or promises too many pixels.
    """
    if not data:
        raise ImageError("empty_image", "the picture has no bytes")
    image = _identify(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height} pixels are over the limit of {max_pixels}")
    if width * height == 0:
        raise ImageError("corrupt_image", f"the picture is {width} x {height} pixels")
    return image


def decode(header: Image.Image, data: bytes, target: tuple[int, int] | None = None) -> Image.Image:
    """The pixels of what `read_header` returned, as RGB, upright; see `open_image`.

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
    """(width, height), upright, of a picture that can be decoded at reduced scale; None for all others."""
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
    """EXIF orientation 1 to 8; upright where the EXIF data is damaged, for the pixels may be whole."""
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
    """16-bit and floating grey scaled to 8 bits; PIL's own conversion clips at 255, which makes a white picture."""
    values = np.asarray(image)
    if values.dtype.kind == "u":
        grey = (values >> 8).astype(np.uint8)
    else:
        grey = _scaled_grey(values.astype(np.float32), whole=values.dtype.kind == "i")
    return Image.fromarray(grey).convert("RGB")


def _scaled_grey(values: np.ndarray, *, whole: bool) -> np.ndarray:
    """Scaled by what the values seem to span: 16 bits where `whole`, else 0..1 or 0..255; beyond, their maximum."""
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
