"""Photograph-like pictures, as many as a bench wants. All differ in their bytes, some dozens also in their pixels.

The pixels are noise with the 1/f spectrum of natural pictures, with hard edges in it. Further pictures are the same
JPEGs with other comments: a job treats them as different pictures, and they take as long to decode.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

SIZES = {"256 px": (256, 256), "640 px": (640, 480), "12 MP": (4000, 3000)}
_SOI = 2  # bytes of a JPEG's first marker; a comment may follow it
_DISTINCT = {"256 px": 64, "640 px": 48, "12 MP": 12}
_ROW_GROUP_BYTES = 16 << 20


def photo(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """A picture, uint8 (height, width, 3): 1/f noise, mostly shared by the channels, with some rectangles on it."""
    rng = np.random.default_rng(seed)
    shared = _pink(rng, width, height)
    channels = [0.8 * shared + 0.35 * _pink(rng, width, height) for _ in range(3)]
    pixels = np.stack(channels, axis=2) * 45 + 120
    for _ in range(6):
        left, top = rng.integers(0, width), rng.integers(0, height)
        wide, tall = rng.integers(width // 16 + 1, width // 3 + 2), rng.integers(height // 16 + 1, height // 3 + 2)
        pixels[top : top + tall, left : left + wide] += rng.normal(0, 40, 3)
    return pixels.clip(0, 255).astype(np.uint8)


def _pink(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """1/f noise of unit variance, (height, width)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]).astype(np.float32)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), np.float32)) / frequency
    field = np.fft.irfft2(spectrum, (height, width)).astype(np.float32)
    return (field - field.mean()) / field.std()


@cache
def jpegs(size: str) -> tuple[bytes, ...]:
    """Some dozens of JPEGs (quality 90, 4:2:0) of one of `SIZES`."""
    width, height = SIZES[size]
    found = []
    for seed in range(_DISTINCT[size]):
        out = io.BytesIO()
        Image.fromarray(photo(seed, width, height)).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return tuple(found)


def pictures(size: str, n: int) -> Iterator[bytes]:
    """n JPEGs that all differ in their bytes."""
    base = jpegs(size)
    for number in range(n):
        data, text = base[number % len(base)], f"{number:08d}".encode()
        comment = b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
        yield data[:_SOI] + comment + data[_SOI:]


def write_parquet(folder: Path, size: str, n: int, files: int = 4) -> Path:
    """A folder of Parquet files with `id`, `image` and `caption`. It is made once."""
    if not (folder / "done").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        found = list(pictures(size, n))
        step = -(-n // files)
        group = max(1, _ROW_GROUP_BYTES // len(found[0]))
        for number, start in enumerate(range(0, n, step)):
            rows = range(start, min(start + step, n))
            table = {
                "id": [f"p{row:08d}" for row in rows],
                "image": pa.array([found[row] for row in rows], pa.binary()),
                "caption": [f"a photograph of thing {row}" for row in rows],
            }
            pq.write_table(pa.table(table), folder / f"part-{number}.parquet", row_group_size=group)
        (folder / "done").touch()
    return folder


def write_tars(folder: Path, size: str, n: int, files: int = 4) -> Path:
    """A folder of WebDataset tars with the same pictures. It is made once."""
    if not (folder / "done").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        found = list(pictures(size, n))
        step = -(-n // files)
        for number, start in enumerate(range(0, n, step)):
            with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
                for row in range(start, min(start + step, n)):
                    _add(tar, f"p{row:08d}.jpg", found[row])
                    _add(tar, f"p{row:08d}.json", json.dumps({"id": row}).encode())
        (folder / "done").touch()
    return folder


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
