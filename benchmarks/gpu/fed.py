"""Part 4, fed: how many cores must decode JPEGs for a GPU, and what decoding on the GPU gives."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.gpu.base import Bench, Row, Skip, Step
from benchmarks.gpu.clock import seconds
from benchmarks.gpu.decoders import decoded
from benchmarks.gpu.models import Rig
from benchmarks.gpu.right import least_cosine
from benchmarks.gpu.words import LARGE, SMALL, VIT_B, per_core, together
from benchmarks.pictures import photo
from encoders.images.decode import open_image
from encoders.images.prepare import prepare, prepare_image

_SIZES = {SMALL: (640, 480, 1), LARGE: (1000, 750, 4)}  # of a tile, and tiles a side
_DISTINCT = {SMALL: 8, LARGE: 1}


@cache
def jpegs(size: str) -> tuple[bytes, ...]:
    """JPEGs like photographs (quality 90, 4:2:0). Large ones are tiled: as fine a noise, in less time."""
    width, height, tiles = _SIZES[size]
    found = []
    for seed in range(_DISTINCT[size]):
        out = io.BytesIO()
        pixels = np.tile(photo(seed, width, height), (tiles, tiles, 1))
        Image.fromarray(pixels).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return tuple(found)


def decoding(size: str, bench: Bench) -> Iterator[Row]:
    """JPEG to prepared pixels in this process, the fast mode."""
    transform, files = Rig.load(bench, VIT_B).transform, jpegs(size)

    def all_of_them() -> None:
        for data in files:
            prepare(data, transform)

    taken = seconds("cpu", all_of_them, least_s=bench.pick(2.0, 0.1))
    yield Row(what=per_core(size), figure=len(files) / taken, unit="pictures/s")


def decode_and_encode(bench: Bench) -> Iterator[Row]:
    """JPEGs decoded by processes on all cores into shared memory, and encoded here."""
    count, lasts_s = bench.pick(64, 4), bench.pick(8.0, 0.5)
    rig = Rig.load(bench, VIT_B, batch_size=count)
    cores = len(os.sched_getaffinity(0))
    made, started = 0, 0.0
    for pictures in decoded(cores, jpegs(SMALL), count, rig.transform):
        rig.encoder.encode_images(list(pictures))
        # The first waited for the processes to start, and warmed the model up.
        made, started = (made + count, started) if started else (0, time.perf_counter())
        if made and time.perf_counter() - started >= lasts_s:
            break
    taken = time.perf_counter() - started
    yield Row(what=together(SMALL), figure=made / taken, unit="pictures/s", note=f"{cores} cores")
    yield Row(what=f"{together(SMALL)}, a core", figure=made / taken / cores, unit="pictures/s")


def nvjpeg(bench: Bench) -> Iterator[Row]:
    """Decoding on the GPU by torchvision, and how far its pixels and vectors are from Pillow's."""
    try:
        from torchvision.io import decode_jpeg
    except (ImportError, RuntimeError) as error:
        raise Skip(f"torchvision is not there: {error}") from error
    rig = Rig.load(bench, VIT_B, precision="fp32")
    for size in (SMALL, LARGE):
        files = jpegs(size) * bench.pick(8, 1)
        streams = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
        decode_jpeg(streams, device=bench.device)
        taken = seconds(bench.device, partial(decode_jpeg, streams, device=bench.device), least_s=1.0)
        yield Row(what=f"nvJPEG, {size}: whole pictures", figure=len(files) / taken, unit="pictures/s")
        found = [image.permute(1, 2, 0).cpu().numpy() for image in decode_jpeg(streams[:2], device=bench.device)]
        yield from _differences(rig, size, found, [np.asarray(open_image(data)) for data in files[:2]])


def _differences(rig: Rig, size: str, found: list[NDArray[Any]], wanted: list[NDArray[Any]]) -> Iterator[Row]:
    levels = [np.abs(a.astype(np.int16) - b) for a, b in zip(found, wanted, strict=True)]
    mean, most = float(np.mean([d.mean() for d in levels])), max(int(d.max()) for d in levels)
    yield Row(what=f"nvJPEG, {size}: mean difference of pixels from Pillow's", figure=mean, note=f"greatest: {most}")
    ours, theirs = (
        rig.encoder.encode_images([prepare_image(Image.fromarray(pixels), rig.transform) for pixels in pictures])
        for pictures in (wanted, found)
    )
    yield Row(what=f"nvJPEG, {size}: least cosine of vectors to Pillow's", figure=least_cosine(ours, theirs))


STEPS = (
    *(Step(name=f"decoding, {size}", run=partial(decoding, size), least_s=3) for size in (SMALL, LARGE)),
    Step(name="decoding and encoding together", run=decode_and_encode, least_s=14),
    Step(name="nvJPEG", run=nvjpeg, least_s=8, cuda_only=True),
)
