"""A cut file is fetched again, a damaged one is not; half a picture must not be embedded as if it were whole."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable

import numpy as np
import pytest
from corpora import picture
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from encoders.images import ImageError, open_image
from encoders.images.kinds import is_cut, looks_like

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "jpeg 2000": ("JPEG2000", {}),
    "avif": ("AVIF", {}),
    "bmp": ("BMP", {}),
}


def encoded(kind: str) -> bytes:
    pil_format, options = KINDS[kind]
    Image.init()
    if pil_format not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {pil_format}")
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(1, size=(64, 48)))).save(buffer, pil_format, **options)
    return buffer.getvalue()


def outcome(data: bytes) -> str | NDArray[np.uint8]:
    """The reason for which a picture is refused, else its pixels."""
    try:
        return np.asarray(open_image(data))
    except ImageError as error:
        return error.reason


def check_cuts(data: bytes, lengths: Iterable[int]) -> list[int]:
    """The lengths at which a cut file passes. There it must show the whole picture; elsewhere it must be called cut."""
    whole, passed = np.asarray(open_image(data)), []
    for length in lengths:
        found = outcome(data[:length])
        if isinstance(found, str):
            assert found == "truncated_image", f"{length} of {len(data)} bytes"
        else:
            np.testing.assert_array_equal(found, whole, f"{length} of {len(data)} bytes passed as whole")
            passed.append(length)
    return passed


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_refused_as_cut_or_has_all_its_pixels(kind: str) -> None:
    data = encoded(kind)
    lengths = {*range(40, len(data), max(1, len(data) // 80)), *range(len(data) - 20, len(data))}
    assert all(len(data) - length <= 20 for length in check_cuts(data, sorted(lengths)))


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "gif", "tiff lzw"])
def test_no_cut_at_all_passes_for_a_whole_picture(kind: str) -> None:
    """Every length is tried: only the last mark of a JPEG may be missing."""
    data = encoded(kind)
    passed = check_cuts(data, range(16, len(data)))
    assert all(len(data) - length <= 2 for length in passed)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("\ufeff <!DOCTYPE html><html>".encode(), "an HTML page"),
        ("<html>nicht gefunden".encode("utf-16"), "an HTML page"),
        ("错误：找不到图片。".encode() * 20, "text"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "XML"),
        (b'  {"message": "rate limited"}', "JSON"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "a video"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
    ],
)
def test_what_is_no_picture_says_what_it_looks_like(data: bytes, words: str) -> None:
    """EPS included: Pillow would run Ghostscript on a stranger's program."""
    with pytest.raises(ImageError, match=words) as caught:
        open_image(data)
    assert caught.value.reason == "not_an_image"


def _with_exif(body: bytes) -> bytes:
    data = picture(1)
    exif = b"Exif\0\0" + body
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


@pytest.mark.parametrize("target", [None, (8, 6)])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"II*",
        b"NOT A TIFF HEADER AT ALL",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0a\0\0\0\0\0\0\0",  # the orientation is the text "a"
        b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0" * 20,
    ],
)
def test_damaged_exif_does_not_cost_a_whole_picture(body: bytes, target: tuple[int, int] | None) -> None:
    whole = np.asarray(open_image(picture(1), target=target))
    np.testing.assert_array_equal(np.asarray(open_image(_with_exif(body), target=target)), whole)


HEADS = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0\x08\0\0\0", b"MM\0*", b"RIFF\0\0\0\0WEBP"]
HEADS += [b"\0\0\0\x18ftypavif", b"\0\0\0\x0cjP  ", b"\xff\xfe", b""]


@given(st.sampled_from(HEADS), st.binary(max_size=300))
def test_reading_a_container_never_fails(head: bytes, rest: bytes) -> None:
    """This code runs while an error is being reported; an error of its own would end the batch."""
    assert is_cut(head + rest) in {True, False, None}
    assert isinstance(looks_like(head + rest), str)
