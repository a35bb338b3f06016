"""Pictures that are broken in the ways seen in real corpora, each with the expected reject reason."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from corpora import picture
from PIL import Image


def _png(width: int, height: int, body: bytes) -> bytes:
    """A PNG that claims a size, with any body."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def _webp(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(seed))).save(buffer, "WEBP")
    return buffer.getvalue()


def _flipped_png(seed: int) -> bytes:
    data = bytearray(picture(seed, kind="PNG"))
    for i in range(60, min(len(data) - 20, 400), 7):
        data[i] ^= 0x5A
    return bytes(data)


def _zeroed_jpeg(seed: int) -> bytes:
    """A JPEG without its tables but with its end mark."""
    data = picture(seed)
    return data[:4] + bytes(len(data) - 6) + data[-2:]


BROKEN: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "empty": ("empty_image", lambda seed: b""),
    "html": ("not_an_image", lambda seed: b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
    "json": ("not_an_image", lambda seed: b'{"error": "forbidden"}'),
    "text": ("not_an_image", lambda seed: b"this is not a picture at all, %d" % seed),
    "noise": ("not_an_image", lambda seed: bytes((seed * 31 + i * 57 + 1) % 256 for i in range(500))),
    "zeros": ("not_an_image", lambda seed: bytes(2_000)),
    "svg": ("not_an_image", lambda seed: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"),
    "half a jpeg": ("truncated_image", lambda seed: picture(seed)[: len(picture(seed)) // 2]),
    "a jpeg without its end": ("truncated_image", lambda seed: picture(seed)[:-40]),
    "half a png": ("truncated_image", lambda seed: picture(seed, kind="PNG")[: len(picture(seed, kind="PNG")) // 2]),
    "half a webp": ("truncated_image", lambda seed: _webp(seed)[: len(_webp(seed)) // 2]),
    "the head of a jpeg": ("truncated_image", lambda seed: picture(seed)[:30]),
    "flipped bits": ("corrupt_image", _flipped_png),
    "a jpeg of zeros": ("corrupt_image", _zeroed_jpeg),
    "a bomb": ("too_many_pixels", lambda seed: _png(60_000, 60_000, b"")),
}
