"""Pictures per second that one core prepares for a 224-pixel encoder, and how far the fast modes change the vectors.

    python -m benchmarks.decode

The baseline is what most pipelines do: PIL decodes the whole picture, converts it to RGB, resizes its shortest edge to
224 pixels and crops the centre. The pictures are synthetic: noise with a photograph's spectrum, edges, and grain, so
that a JPEG of quality 90 has about as many bits per pixel as a photograph. Cosines compare the vectors of pretrained
EfficientNet-Lite0 with those of the baseline's pixels.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.harness import Goal, ratio, report, summary, take_turns
from encoders.images import ImageTransform, prepare
from encoders.registry import load

TRANSFORM = ImageTransform(kind="shortest_edge", size=(224, 224), crop=(224, 224))
SIZES = {"256 px": (256, 256), "640 px": (640, 480), "12 MP": (4000, 3000)}
FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 90, "subsampling": "4:2:0"},
    "PNG": {"compress_level": 3},
    "WEBP": {"quality": 85, "method": 2},
}
_GOALS = {("JPEG", "12 MP"): 5.0, ("JPEG", "640 px"): 1.5}
_COSINE = 0.999
_OTHERS = 4  # Fewer pictures of 12 MP in formats other than JPEG: each takes seconds to make.
_ROUND_S = 0.5
_GRAIN = 5.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """Pictures of one size and format."""

    size: str
    kind: str
    files: Sequence[bytes]


def photograph(size: tuple[int, int], seed: int) -> Image.Image:
    """A synthetic photograph: equal energy in every octave, shapes with sharp edges, and grain."""
    rng = np.random.default_rng(seed)
    width, height = size
    total = Image.fromarray(np.full((height, width, 3), 128, np.uint8))
    layers = [np.full((height, width), 128, np.float32) for _ in range(3)]
    for octave in range(1, 9):
        shape = (max(2, 2**octave * height // width), 2**octave)
        shared = rng.normal(size=shape)
        for layer in layers:
            coarse = (shared + 0.4 * rng.normal(size=shape)) * 45 * 2.0 ** (-octave * 0.7)
            layer += np.asarray(Image.fromarray(coarse.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    draw = ImageDraw.Draw(total)
    for _ in range(40):
        x, y, r = rng.integers(0, width), rng.integers(0, height), int(rng.integers(4, width // 6))
        colour = tuple(int(c) for c in rng.integers(70, 190, 3))
        draw.ellipse((int(x) - r, int(y) - r // 2, int(x) + r, int(y) + r // 2), fill=colour)
    pixels = np.stack(layers, axis=-1) + np.asarray(total, np.float32) - 128
    pixels += rng.standard_normal((height, width, 1), dtype=np.float32) * _GRAIN
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def cases(pictures: int, sizes: Sequence[str] = tuple(SIZES)) -> list[Case]:
    """All sizes in all formats."""
    found = []
    for name in sizes:
        size = SIZES[name]
        files: dict[str, list[bytes]] = {kind: [] for kind in FORMATS}
        for seed in range(pictures):
            image = photograph(size, seed)
            for kind, options in FORMATS.items():
                if kind == "JPEG" or size[0] < 1000 or seed < _OTHERS:
                    buffer = io.BytesIO()
                    image.save(buffer, kind, **options)
                    files[kind].append(buffer.getvalue())
        found += [Case(size=name, kind=kind, files=made) for kind, made in files.items()]
    return found


def full(data: bytes) -> NDArray[np.uint8]:
    """The baseline: decode the whole picture, resize and crop with PIL."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = TRANSFORM.target_size(*image.size)
    left, top = (width - 224) // 2, (height - 224) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def entropy_coded(data: bytes) -> Image.Image:
    """The least work on a JPEG: read all its bits, make one pixel of 64, resize nothing."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (image.width // 8, image.height // 8))
    image.load()
    return image


def bounds(case: Case, rounds: int) -> list[dict[str, Any]]:
    """How many times faster than the baseline each part of a JPEG's decoding would be by itself."""
    ways: dict[str, Callable[[bytes], object]] = {
        "PIL's full decode, convert, resize, crop": full,
        "PIL's full decode alone, no copy": lambda data: Image.open(io.BytesIO(data)).load(),
        "fast": lambda data: prepare(data, TRANSFORM, "fast"),
        "decoded at 1/8, not resized": entropy_coded,
    }
    figures = take_turns({name: partial(rate, way, case.files[:4]) for name, way in ways.items()}, rounds)
    return [
        {
            "12 MP JPEG": name,
            "ms": round(1000 / found["median"], 2),
            "ratio": round(ratio(figures, name, next(iter(ways))), 2),
        }
        for name, found in summary(figures).items()
    ]


def rate(prepare_one: Callable[[bytes], object], files: Sequence[bytes]) -> float:
    """Pictures per second."""
    done, started = 0, time.perf_counter()
    while done < 2 or time.perf_counter() - started < _ROUND_S:
        prepare_one(files[done % len(files)])
        done += 1
    return done / (time.perf_counter() - started)


def measure(case: Case, rounds: int, encode: Callable[[list[NDArray[np.uint8]]], NDArray]) -> dict[str, Any]:
    """Measure one case: a row of the table."""
    ways: dict[str, Callable[[bytes], NDArray[np.uint8]]] = {
        "PIL": full,
        "fast": lambda data: prepare(data, TRANSFORM, "fast"),
        "exact": lambda data: prepare(data, TRANSFORM, "exact"),
    }
    figures = take_turns({name: partial(rate, way, case.files[:4]) for name, way in ways.items()}, rounds)
    medians = {name: found["median"] for name, found in summary(figures).items()}
    vectors = {name: encode([ways[name](data) for data in case.files]) for name in ("PIL", "fast")}
    cosines = (vectors["PIL"] * vectors["fast"]).sum(axis=1)
    width, height = SIZES[case.size]
    return {
        "picture": case.size,
        "format": case.kind,
        "bits a pixel": round(8 * statistics.median(map(len, case.files)) / (width * height), 2),
        "PIL, pictures/s": medians["PIL"],
        "exact, pictures/s": medians["exact"],
        "fast, pictures/s": medians["fast"],
        "fast / PIL": round(ratio(figures, "fast", "PIL"), 2),
        "cosine, least": round(float(cosines.min()), 5),
        "cosine, mean": round(float(cosines.mean()), 5),
        "pictures": len(case.files),
    }


def main() -> int:
    """Measure and report. The exit code is 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=32)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    encode = load("efficientnet-lite0").encode_images
    every = cases(options.pictures)
    rows = [measure(case, options.rounds, encode) for case in every]
    parts = bounds(next(case for case in every if (case.kind, case.size) == ("JPEG", "12 MP")), options.rounds)
    tables = {"One core, to 224 x 224": rows, "Where the time of a large JPEG goes": parts}
    goals = goals_of(rows, floor=parts[-1]["ratio"])
    report("decode", "python -m benchmarks.decode", tables, goals)
    return 0 if all(goal.met for goal in goals) else 1


def goals_of(rows: Sequence[dict[str, Any]], floor: float) -> list[Goal]:
    """Goals of speed for the cases that have one, and goals of the cosine for all cases."""
    goals = []
    for row in rows:
        name = f"{row['format']}, {row['picture']}"
        if target := _GOALS.get((row["format"], row["picture"])):
            found = row["fast / PIL"]
            note = f"reading its bits alone, at 1/8 and with no resizing, is {floor:g} x" if found < target else ""
            speed = f"{name}: fast against PIL's full decode"
            goals.append(Goal(name=speed, figure=found, target=target, note=note))
        goals.append(Goal(name=f"{name}: least cosine", figure=row["cosine, least"], target=_COSINE))
    return goals


if __name__ == "__main__":
    sys.exit(main())
