"""Part 3, fast: the product's encode call by batch size beside its ceiling, the same forward pass on a tensor that
already lies on the device; then what each lever gives (`levers.py`)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import levers
from benchmarks.gpu.base import Bench, Row, Step, goal
from benchmarks.gpu.clock import rate
from benchmarks.gpu.machine import matmul_tflops
from benchmarks.gpu.models import Rig, pixels
from benchmarks.gpu.words import RESNET, VIT_B, VIT_L, best_rate
from benchmarks.harness import ratio, take_turns

ENCODE, CEILING = "encode call", "ceiling"
_GOALS = {VIT_B: 0.95, VIT_L: 0.98}
_BATCHES = {RESNET: (64, 256, 1024), VIT_B: (64, 256, 1024), VIT_L: (64, 256, 512)}
_CALL_BATCHES = 4  # batches of an encode call
_ROUNDS = 3


def rates(name: str, bench: Bench) -> Iterator[Row]:
    """One model at each batch size."""
    rig = Rig.load(bench, name)
    flops, peak = picture_flops(bench, rig), matmul_tflops(bench)
    yield Row(what=f"{name}: forward pass of a picture", figure=flops / 1e9, unit="GFLOP")
    shares: dict[int, tuple[float, float]] = {}
    for batch in bench.pick(_BATCHES[name], (4, 8)):
        figures = turns(bench, rig, batch)
        encode, ceiling = (statistics.median(figures[key]) for key in (ENCODE, CEILING))
        share = ratio(figures, ENCODE, CEILING)
        shares[batch] = encode, share
        what = f"{name}, batch {batch}"
        yield Row(what=f"{what}: {ENCODE}", figure=encode, unit="pictures/s")
        yield Row(what=f"{what}: {CEILING}", figure=ceiling, unit="pictures/s")
        yield Row(what=f"{what}: share of the ceiling", figure=share)
        for key, figure in ((ENCODE, encode), (CEILING, ceiling)):
            used = figure * flops / 1e12
            yield Row(what=f"{what}: FLOPs utilisation, {key}", figure=used / peak, note=f"{used:.1f} TFLOP/s")
    best = max(shares, key=lambda batch: shares[batch][0])
    yield Row(what=best_rate(name), figure=shares[best][0], unit="pictures/s", note=f"batch {best}")
    if name in _GOALS:
        yield goal(f"{name}, bf16: encode call by its ceiling", shares[best][1], _GOALS[name], note=f"batch {best}")


def turns(bench: Bench, rig: Rig, batch: int) -> dict[str, list[float]]:
    """Pictures a second of the encode call and of its ceiling, in turns."""
    rig.runtime.batch_size = batch
    pictures = pixels(rig.transform, batch * _CALL_BATCHES)
    ready = on_device(bench, rig, batch)
    least_s = bench.pick(0.3, 0.0)
    ways = {
        ENCODE: rate(bench.device, lambda: rig.encoder.encode_images(pictures), len(pictures), least_s),
        CEILING: rate(bench.device, lambda: rig.vectors(ready), batch, least_s),
    }
    return take_turns(ways, _ROUNDS)


def on_device(bench: Bench, rig: Rig, batch: int) -> torch.Tensor:
    """A normalised batch on the device, laid out as the product's is."""
    raw = torch.from_numpy(np.stack(pixels(rig.transform, batch))).to(bench.device)
    return rig.transform.normalise_tensor(raw)


def picture_flops(bench: Bench, rig: Rig) -> float:
    """Floating point operations of a picture's forward pass, a multiply-add as two."""
    with FlopCounterMode(display=False) as counter:
        rig.vectors(on_device(bench, rig, 1))
    return float(counter.get_total_flops())


STEPS = (
    *(Step(name=name, run=partial(rates, name), least_s=12) for name in (VIT_B, VIT_L, RESNET)),
    *levers.STEPS,
)
