"""Part 5, out of memory: batches that do not fit are halved for good, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.gpu.base import Bench, Row, Step, check
from benchmarks.gpu.clock import free_memory
from benchmarks.gpu.models import Rig, pixels
from benchmarks.gpu.right import MOST_DIFFERENCE
from benchmarks.gpu.words import VIT_B
from encoders.runtime.towers import ImageTower

_MIB = 2**20


def refused(bench: Bench) -> Iterator[Row]:
    """A forward pass that says it is out of memory beyond some rows."""
    asked, fits = 16, 3
    rig = Rig.load(bench, VIT_B, precision="fp32", batch_size=asked)
    pictures = pixels(rig.transform, 2 * asked)
    whole = rig.encoder.encode_images(pictures)

    def forward(pixel_values: torch.Tensor) -> torch.Tensor:
        if len(pixel_values) > fits:
            raise torch.OutOfMemoryError("out of memory, says the bench")
        return rig.features(pixel_values)

    tower = ImageTower(transform=rig.transform, forward=forward, dim=whole.shape[1], runtime=rig.runtime)
    difference = float(np.abs(tower.encode(pictures) - whole).max())
    yield check("refused batches: greatest difference of vectors", difference, MOST_DIFFERENCE, at_least=False)
    kept = float(rig.runtime.batch_size)
    yield check("refused batches: batch size that stays", kept, fits, at_least=False, note=f"{asked} was asked for")


def filled(bench: Bench) -> Iterator[Row]:
    """Memory is taken until the asked batch cannot fit."""
    asked = 1024
    rig = Rig.load(bench, VIT_B, precision="fp32", batch_size=asked)
    pictures = pixels(rig.transform, 2 * asked)
    rig.encoder.encode_images(pictures)
    free_memory(bench.device)
    before = torch.cuda.memory_allocated()
    whole = rig.encoder.encode_images(pictures)
    needed = torch.cuda.max_memory_allocated() - before
    free_memory(bench.device)
    ballast = torch.empty(torch.cuda.mem_get_info()[0] - needed // 3, dtype=torch.uint8, device=bench.device)
    yield Row(what="filled memory: left for a batch", figure=needed / 3 / _MIB, unit="MiB")
    found = rig.encoder.encode_images(pictures)
    del ballast
    difference = float(np.abs(found - whole).max())
    yield check("filled memory: greatest difference of vectors", difference, MOST_DIFFERENCE, at_least=False)
    kept, note = float(rig.runtime.batch_size), f"{asked} was asked for"
    yield check("filled memory: batch size that stays", kept, asked / 2, at_least=False, note=note)
    free_memory(bench.device)
    lost = (torch.cuda.memory_allocated() - before) / _MIB
    yield check("filled memory: MiB that are not back afterwards", lost, 1.0, at_least=False)


STEPS = (
    Step(name="refused batches", run=refused, least_s=3),
    Step(name="filled memory", run=filled, least_s=8, cuda_only=True),
)
