"""Normalises pictures for the sample corpora: small, on white, without transparency."""

from __future__ import annotations

import hashlib
import io
import warnings

from PIL import Image

# Decoding holds several copies of a picture. A larger clip art is not worth that much memory.
MAX_PIXELS = 25_000_000
MAX_SIDE = 512
_QUALITY = 90


class UnusablePicture(ValueError):  # noqa: N818
    """A picture that the corpus leaves out; `reason` says why, in one word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def on_white(data: bytes, *, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to RGB, its transparent parts white, its longer side at most `max_side` pixels.

    Raises:
        UnusablePicture: `too_many_pixels`, `unreadable`, or `blank` (a single colour, such as a white drawing on a
            transparent background).
    """
    try:
        with warnings.catch_warnings():
            # The size is checked below; Pillow's own warning, from 89 megapixels, adds nothing.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        if image.width * image.height > max_pixels:
            raise UnusablePicture("too_many_pixels")
        rgba = image.convert("RGBA")
    except Image.DecompressionBombError as error:
        raise UnusablePicture("too_many_pixels") from error
    except (OSError, SyntaxError) as error:
        raise UnusablePicture("unreadable") from error
    white = Image.new("RGBA", rgba.size, "white")
    flat = Image.alpha_composite(white, rgba).convert("RGB")
    if flat.getcolors(1) is not None:
        raise UnusablePicture("blank")
    flat.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return flat


def pixel_digest(image: Image.Image) -> str:
    """A digest of the picture's size and pixels; it does not depend on the file format."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def encode(image: Image.Image, kind: str) -> bytes:
    """The picture as PNG or JPEG bytes."""
    buffer = io.BytesIO()
    options = {"optimize": True} if kind == "PNG" else {"quality": _QUALITY, "optimize": True}
    image.save(buffer, kind, **options)
    return buffer.getvalue()
