"""A planted corpus whose captions two towers cannot tell apart: which colour is on which side."""

from __future__ import annotations

import io
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (230, 220, 50),
    "black": (20, 20, 20),
}
WORDS = (*COLOURS, "left", "right", "of")


def halves(left: str, right: str, seed: int) -> bytes:
    """A picture of two colours side by side, with noise."""
    noise = np.random.default_rng(seed).normal(0, 18, (32, 32, 3))
    pixels = np.empty((32, 32, 3))
    pixels[:, :16], pixels[:, 16:] = COLOURS[left], COLOURS[right]
    buffer = io.BytesIO()
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_planted(path: Path, copies: int, first: int = 0) -> Path:
    """A Parquet corpus: each ordered pair of colours, repeated a number of times."""
    pairs = [(left, right, n) for n in range(first, first + copies) for left, right in permutations(COLOURS, 2)]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {
        "id": [f"{left}-{right}-{n}" for left, right, n in pairs],
        "image": pa.array([halves(left, right, hash_of(*pair)) for pair in pairs for left, right in [pair[:2]]]),
        "caption": [f"{left} left of {right}" for left, right, _ in pairs],
    }
    pq.write_table(pa.table(table), path)
    return path


def hash_of(left: str, right: str, n: int) -> int:
    """A seed of its own for each picture."""
    names = list(COLOURS)
    return (n * 100 + names.index(left)) * 100 + names.index(right)
