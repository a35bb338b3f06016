"""What a file's first bytes announce, and whether the file is complete. Nothing is decoded.

Codecs raise `OSError` for nearly every failure. Only the container tells a truncated download, which is worth fetching
again, from a corrupt file.
"""

from __future__ import annotations

import codecs
from typing import Literal

_TAIL_BYTES = 1024
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
}
_OTHERS = {
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive",
    b"8BPS": "a Photoshop document",
    b"version https://git-lfs": "a Git LFS pointer, not the file",
}
_STRIPS = ((273, 279), (324, 325))  # TIFF tags: offset and length of each strip or tile
_TIFF_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # field type: bytes


def container(data: bytes) -> str | None:
    """The kind of picture that the first bytes announce; None for anything else."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    return next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)


def is_cut(data: bytes) -> bool | None:
    """Whether a picture ends before its container does; None if the kind cannot tell."""
    match container(data):
        case "JPEG":
            return b"\xff\xd9" not in data[-_TAIL_BYTES:]
        case "PNG":
            return b"IEND" not in data[-_TAIL_BYTES:]
        case "GIF":
            return _gif_is_cut(data)
        case "WebP":
            return int.from_bytes(data[4:8], "little") + 8 > len(data)
        case "TIFF":
            return _tiff_is_cut(data)
        case "AVIF" | "JPEG 2000":
            return _boxes_are_cut(data)
    return None


def looks_like(data: bytes) -> str:
    """What a file that is not a picture seems to be, for a message: "it looks like an HTML page"."""
    if data[4:8] == b"ftyp":
        heic = data[8:12] in (b"heic", b"heix", b"mif1", b"msf1")
        return "it looks like HEIC, which Pillow does not read" if heic else "it looks like a video"
    for magic, name in _OTHERS.items():
        if data.startswith(magic):
            return f"it looks like {name}"
    text = _as_text(data[:256])
    if text is None:
        return f"it begins with {data[:8]!r}"
    text = text.lstrip().lower()
    if text.startswith(("<!doctype html", "<html")):
        return "it looks like an HTML page"
    if text.startswith(("<svg", "<?xml")):
        return "it looks like XML or SVG"
    return "it looks like JSON" if text.startswith(("{", "[")) else "it looks like text"


def _as_text(head: bytes) -> str | None:
    """The head decoded as UTF-8, or as UTF-16 if it has a byte order mark; None if it is binary."""
    name = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        # Incremental: the head may end inside a character.
        text = codecs.getincrementaldecoder(name)().decode(head, final=False)
    except UnicodeDecodeError:
        return None
    return text if all(letter.isprintable() or letter.isspace() for letter in text) else None


def _gif_is_cut(data: bytes) -> bool:
    """Whether the chain of blocks ends before its trailer, whose byte also occurs in pixels."""

    def palette_bytes(at: int) -> int:
        flags = data[at] if at < len(data) else 0
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    at = 13 + palette_bytes(10)
    while at < len(data) and data[at] in b"!,":
        at += 2 if data[at : at + 1] == b"!" else 11 + palette_bytes(at + 9)
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return at >= len(data)


def _tiff_is_cut(data: bytes) -> bool:
    """Whether the first directory, a value that it points to, or a strip or tile lies beyond the end of the file."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(at: int, width: int) -> int:
        return int.from_bytes(data[at : at + width], order)

    def extent(entry: int) -> tuple[int, int, int]:
        """(start, end, width) of an entry's values, in bytes."""
        width, n = _TIFF_WIDTHS.get(number(entry + 2, 2), 1), number(entry + 4, 4)
        start = entry + 8 if n * width <= 4 else number(entry + 8, 4)
        return start, start + n * width, width

    directory = number(4, 4)
    end = directory + 2 + 12 * number(directory, 2)
    if end + 4 > len(data):
        return True
    extents = {number(at, 2): extent(at) for at in range(directory + 2, end, 12)}
    if any(stop > len(data) for _, stop, _ in extents.values()):
        return True
    for offsets, lengths in _STRIPS:
        if offsets in extents and lengths in extents:
            starts, sizes = (
                [number(at, width) for at in range(begin, stop, width)]
                for begin, stop, width in (extents[offsets], extents[lengths])
            )
            return any(start + size > len(data) for start, size in zip(starts, sizes, strict=False))
    return False


def _boxes_are_cut(data: bytes) -> bool:
    """Whether the last box of an ISO media file (AVIF, JPEG 2000) extends beyond the end of the file."""
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        if length == 0:  # the box extends to the end of the file
            return False
        if length < 8:
            return at + 8 > len(data)
        at += length
    return at > len(data)
