"""Part 1, the machine: what it is, and what it computes and copies at best."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from importlib import metadata

import torch

from benchmarks.gpu.base import Bench, Row, Step
from benchmarks.gpu.clock import seconds, tf32

_ROUNDS = 5


def about(bench: Bench) -> Iterator[Row]:
    """Names and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Row(what="cores", figure=str(cores))
    yield Row(what="Python", figure=platform.python_version())
    for package in ("torch", "transformers", "numpy", "pillow"):
        yield Row(what=package, figure=metadata.version(package))
    for package in ("torchvision", "peft"):
        yield Row(what=package, figure="there" if importlib.util.find_spec(package) else "not there")
    if bench.device == "cuda":
        yield from _gpu()


def _gpu() -> Iterator[Row]:
    found = torch.cuda.get_device_properties(0)
    yield Row(what="GPU", figure=found.name, note=f"compute capability {found.major}.{found.minor}")
    yield Row(what="memory", figure=round(found.total_memory / 2**30, 1), unit="GiB")
    yield Row(what="CUDA of torch", figure=str(torch.version.cuda), note=f"cuDNN {torch.backends.cudnn.version()}")
    yield Row(what="driver", figure=_driver())


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def matmul_tflops(bench: Bench, dtype: torch.dtype = torch.bfloat16) -> float:
    """TFLOP/s of a large square product, the median of some rounds."""
    n = bench.pick(8192, 64)
    a, b = (torch.randn(n, n, device=bench.device).to(dtype) for _ in range(2))
    a @ b
    taken = [seconds(bench.device, lambda: a @ b, least_s=bench.pick(0.1, 0.01)) for _ in range(_ROUNDS)]
    return 2 * n**3 / statistics.median(taken) / 1e12


def products(bench: Bench) -> Iterator[Row]:
    """Matrix products by precision."""
    yield Row(what="product, bf16", figure=matmul_tflops(bench), unit="TFLOP/s")
    for on in (False, True):
        with tf32(matmul=on, convolution=on):
            figure = matmul_tflops(bench, torch.float32)
        yield Row(what=f"product, fp32, TF32 {'on' if on else 'off'}", figure=figure, unit="TFLOP/s")


def copies(bench: Bench) -> Iterator[Row]:
    """Copies between host and device, and within the device."""
    size = 256 << 20
    pageable, pinned = torch.ones(size, dtype=torch.uint8), torch.ones(size, dtype=torch.uint8, pin_memory=True)
    there, other = (torch.ones(size, dtype=torch.uint8, device=bench.device) for _ in range(2))
    ways = {
        "host to device, pinned": (there, pinned),
        "host to device, not pinned": (there, pageable),
        "device to host, pinned": (pinned, there),
        "device to device": (other, there),
    }
    for name, (target, source) in ways.items():
        target.copy_(source)
        taken = [
            seconds(bench.device, lambda: target.copy_(source, non_blocking=True), least_s=0.05)  # noqa: B023
            for _ in range(_ROUNDS)
        ]
        yield Row(what=f"copy, {name}", figure=size / statistics.median(taken) / 1e9, unit="GB/s")


STEPS = (
    Step(name="names and versions", run=about),
    Step(name="matrix products", run=products, least_s=2),
    Step(name="copies", run=copies, least_s=2, cuda_only=True),
)
