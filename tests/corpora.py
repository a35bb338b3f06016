"""Small corpora for tests: the same pictures and captions as Parquet, WebDataset tars and a folder."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

WORDS = [
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "boat",
    "house",
    "tree",
    "river",
    "stone",
    "bird",
    "cloud",
    "lamp",
    "chair",
    "bread",
    "红色",
    "小狗",
    "船",
    "房子",
    "树",
]


@dataclass(frozen=True)
class Pair:
    """A picture and its caption."""

    key: str
    image: bytes
    caption: str
    year: int


def picture(seed: int, *, size: tuple[int, int] = (48, 36), kind: str = "JPEG") -> bytes:
    """A small picture, different for each seed: a gradient with some shapes."""
    rng = np.random.default_rng(seed)
    width, height = size
    ramp = np.linspace(0, 1, width)[None, :, None] * rng.integers(60, 255, 3) + rng.integers(0, 40, 3)
    canvas = Image.fromarray(np.broadcast_to(ramp, (height, width, 3)).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(3):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        colour = tuple(int(c) for c in rng.integers(0, 255, 3))
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour)
    buffer = io.BytesIO()
    canvas.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


def pairs(n: int, seed: int = 0) -> list[Pair]:
    """`n` pairs with distinct pictures."""
    rng = random.Random(seed)
    return [
        Pair(f"{i:05d}", picture(seed * 100_000 + i), " ".join(rng.sample(WORDS, 4)), 1990 + i % 30) for i in range(n)
    ]


def write_parquet(path: Path, items: Sequence[Pair], *, row_group_rows: int = 64) -> Path:
    """One Parquet file with embedded bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "id": [p.key for p in items],
            "image": pa.array([p.image for p in items], pa.binary()),
            "caption": [p.caption for p in items],
            "year": pa.array([p.year for p in items], pa.int32()),
        }
    )
    pq.write_table(table, path, row_group_size=row_group_rows)
    return path


def write_webdataset(folder: Path, items: Sequence[Pair], *, per_tar: int = 50) -> Path:
    """Tars as img2dataset writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(items), per_tar):
        with tarfile.open(folder / f"{start // per_tar:05d}.tar", "w") as tar:
            for pair in items[start : start + per_tar]:
                meta = json.dumps({"key": pair.key, "year": pair.year}).encode()
                for suffix, data in ((".jpg", pair.image), (".txt", pair.caption.encode()), (".json", meta)):
                    member = tarfile.TarInfo(pair.key + suffix)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def write_folder(folder: Path, items: Sequence[Pair]) -> Path:
    """Pictures with sidecar captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for pair in items:
        (folder / f"{pair.key}.jpg").write_bytes(pair.image)
        (folder / f"{pair.key}.txt").write_text(pair.caption)
    return folder
