"""What each lever gives an encoder in bf16: copies, layout, streams, graphs, compilation, a second process."""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.base import Bench, Row, Skip, Step, check, goal
from benchmarks.gpu.clock import Lanes, rate, seconds
from benchmarks.gpu.models import Rig, pixels
from benchmarks.gpu.right import LEAST_COSINE, least_cosine
from benchmarks.gpu.words import RESNET, VIT_B, VIT_L
from benchmarks.harness import Figures, ratio, take_turns

_ROUNDS = 3
_FIRST = "as it is"
_BATCHES = 8
_PROCESS_S, _PROCESS_START_S = 3.0, 60.0
_STREAM_GOALS = {VIT_B: 0.95, VIT_L: 0.98}
Ways = dict[str, Callable[[], object]]


def copies(bench: Bench) -> Iterator[Row]:
    """From pictures in host memory to vectors on the device: what is copied, and how."""
    rig = Rig.load(bench, VIT_B)
    raw = _host(bench, rig)
    floats, pinned = rig.transform.normalise_tensor(raw), Lanes(bench.device).pinned(raw)

    def from_bytes(source: torch.Tensor, *, wait: bool) -> object:
        return rig.vectors(rig.transform.normalise_tensor(source.to(bench.device, non_blocking=not wait)))

    ways: Ways = {
        _FIRST: lambda: from_bytes(raw, wait=True),
        "float32": lambda: rig.vectors(floats.to(bench.device)),
        "pinned": lambda: from_bytes(pinned, wait=False),
    }
    figures = _compared(bench, ways, len(raw))
    yield _row("uint8 by float32, both pageable", figures, _FIRST, "float32")
    yield _row("uint8, pinned and asynchronous by pageable", figures, "pinned")


def layout(name: str, bench: Bench) -> Iterator[Row]:
    """Channels-last by contiguous; and weights that are kept in bf16."""
    rig, other, halves = (Rig.load(bench, name) for _ in range(3))
    other.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    halves.network.to(torch.bfloat16)
    ready = _ready(bench, rig)
    plain, half = ready.contiguous(), ready.to(torch.bfloat16)

    def without_autocast() -> torch.Tensor:
        with torch.inference_mode():
            return torch.nn.functional.normalize(halves.features(half).float(), dim=-1)

    ways: Ways = {
        _FIRST: lambda: rig.vectors(ready),
        "contiguous": lambda: other.vectors(plain),
        "bf16": without_autocast,
    }
    figures = _compared(bench, ways, len(ready))
    yield _row(f"{name}: channels-last by contiguous", figures, _FIRST, "contiguous")
    yield _row(f"{name}: weights in bf16 by autocast", figures, "bf16")
    cosine = least_cosine(_numbers(without_autocast()), _numbers(rig.vectors(ready)))
    yield Row(what=f"{name}: weights in bf16: least cosine to autocast's", figure=cosine)


class Pipeline:
    """Batches of uint8 to vectors, both in host memory: while one is computed the next is staged and copied."""

    def __init__(self, bench: Bench, rig: Rig, shape: tuple[int, ...]) -> None:
        self._rig, self._lanes = rig, Lanes(bench.device)
        self._staged = [self._lanes.staging(shape, torch.uint8) for _ in range(2)]
        # On the device once: `normalise_tensor` copies them there for each batch, and waits.
        numbers = (rig.transform.mean, rig.transform.std)
        self._mean, self._std = (torch.tensor(values, device=bench.device) for values in numbers)

    def run(self, batches: list[torch.Tensor], found: torch.Tensor) -> NDArray[np.float32]:
        """The vectors, written into pinned memory (batches · batch size, dim)."""
        done: list[Callable[[], None]] = [lambda: None, lambda: None]
        size = len(batches[0])
        for i, batch in enumerate(batches):
            done[i % 2]()
            self._staged[i % 2].copy_(batch)
            raw = self._lanes.upload(self._staged[i % 2])
            scaled = (raw.float() * self._rig.transform.scale - self._mean) / self._std
            vectors = self._rig.vectors(scaled.permute(0, 3, 1, 2))
            found[i * size : (i + 1) * size].copy_(vectors, non_blocking=True)
            done[i % 2] = self._lanes.mark()
        self._lanes.mark()()
        return found.numpy()


def copy_stream(name: str, bench: Bench) -> Iterator[Row]:
    """A copy stream beside the compute stream, by the encode call and by the ceiling."""
    rig = Rig.load(bench, name, batch_size=_batch(bench))
    raw = _host(bench, rig)
    ready = _ready(bench, rig)
    batches = [raw.clone() for _ in range(_BATCHES)]
    pictures = [picture for batch in batches for picture in batch.numpy()]
    pipeline = Pipeline(bench, rig, tuple(raw.shape))
    found = Lanes(bench.device).staging((len(pictures), rig.encoder.card.towers[0].dim), torch.float32)

    def ceiling() -> None:
        for _ in batches:
            rig.vectors(ready)

    ways: Ways = {
        _FIRST: lambda: rig.encoder.encode_images(pictures),
        "copy stream": lambda: pipeline.run(batches, found),
        "ceiling": ceiling,
    }
    figures = _compared(bench, ways, len(pictures))
    yield _row(f"{name}: copy stream by the encode call", figures, "copy stream")
    share, note = ratio(figures, "copy stream", "ceiling"), f"batch {len(raw)}"
    yield goal(f"{name}: copy stream by the ceiling", share, _STREAM_GOALS[name], note=note)
    yield _same(f"{name}: copy stream", pipeline.run(batches, found), rig.encoder.encode_images(pictures))


def graphs(bench: Bench) -> Iterator[Row]:
    """The forward pass as a CUDA graph, at a small batch and a large one."""
    rig = Rig.load(bench, VIT_B)
    for size in (32, _batch(bench)):
        ready = _ready(bench, rig)[:size].clone(memory_format=torch.channels_last)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                rig.vectors(ready)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            vectors = rig.vectors(ready)
        figures = _compared(bench, {_FIRST: partial(rig.vectors, ready), "graph": graph.replay}, size)
        yield _row(f"{VIT_B}, batch {size}: CUDA graph by launches", figures, "graph")
        yield _same(f"{VIT_B}, batch {size}: CUDA graph", _numbers(vectors), _numbers(rig.vectors(ready)))


def compilation(bench: Bench) -> Iterator[Row]:
    """`torch.compile`, and what it takes to compile."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        raise Skip("torch.compile wants a C compiler, and there is none")
    rig = Rig.load(bench, VIT_B)
    ready = _ready(bench, rig)
    compiled = replace(rig, features=torch.compile(rig.features, dynamic=False))
    yield Row(
        what="torch.compile: compile time", figure=seconds(bench.device, lambda: compiled.vectors(ready)), unit="s"
    )
    ways: Ways = {_FIRST: lambda: rig.vectors(ready), "compiled": lambda: compiled.vectors(ready)}
    yield _row(f"{VIT_B}: torch.compile by eager", _compared(bench, ways, len(ready)), "compiled")
    yield _same(f"{VIT_B}: torch.compile", _numbers(compiled.vectors(ready)), _numbers(rig.vectors(ready)))


def processes(bench: Bench) -> Iterator[Row]:
    """Two processes that encode on the device at once, by one."""
    alone, both = (sum(encode_together(bench, count)) for count in (1, 2))
    note = f"{both:.4g} by {alone:.4g} pictures/s"
    yield Row(what=f"lever, {VIT_B}: two processes by one", figure=both / alone, unit="×", note=note)


def encode_together(bench: Bench, count: int) -> list[float]:
    """Pictures a second of each of so many processes that encode at the same time."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(count):
        ours, theirs = context.Pipe()
        context.Process(target=_encode, args=(replace(bench, ends_at=0.0), theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    for message in ("ready", "rate"):
        for pipe in pipes:
            if not pipe.poll(_PROCESS_START_S):
                raise TimeoutError(f"a process gave no {message} within {_PROCESS_START_S:.0f} s")
        found = [float(pipe.recv()) for pipe in pipes]
        for pipe in pipes:
            pipe.send(None)
    return found


def _encode(bench: Bench, pipe: Connection) -> None:
    rig = Rig.load(bench, VIT_B, batch_size=_batch(bench))
    pictures = pixels(rig.transform, _batch(bench) * 4)
    rig.encoder.encode_images(pictures)
    pipe.send(0.0)
    pipe.recv()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < bench.pick(_PROCESS_S, 0.1):
        rig.encoder.encode_images(pictures)
        calls += 1
    pipe.send(calls * len(pictures) / (time.perf_counter() - started))
    pipe.recv()


def _batch(bench: Bench) -> int:
    return bench.pick(256, 8)


def _host(bench: Bench, rig: Rig) -> torch.Tensor:
    return torch.from_numpy(np.stack(pixels(rig.transform, _batch(bench))))


def _ready(bench: Bench, rig: Rig) -> torch.Tensor:
    return rig.transform.normalise_tensor(_host(bench, rig).to(bench.device))


def _numbers(vectors: torch.Tensor) -> NDArray[np.float32]:
    return vectors.cpu().numpy()


def _compared(bench: Bench, ways: Ways, items: int) -> Figures:
    """Items a second of ways to do the same, in turns."""
    least_s = bench.pick(0.2, 0.0)
    return take_turns({name: rate(bench.device, way, items, least_s) for name, way in ways.items()}, _ROUNDS)


def _row(what: str, figures: Figures, way: str, base: str = _FIRST) -> Row:
    note = f"{statistics.median(figures[way]):.4g} by {statistics.median(figures[base]):.4g} pictures/s"
    return Row(what=f"lever, {what}", figure=ratio(figures, way, base), unit="×", note=note)


def _same(what: str, found: NDArray[np.float32], wanted: NDArray[np.float32]) -> Row:
    return check(f"{what}: least cosine to the eager vectors", least_cosine(found, wanted), LEAST_COSINE["bf16"])


STEPS = (
    Step(name="lever, copies", run=copies, least_s=5),
    *(Step(name=f"lever, {name}: copy stream", run=partial(copy_stream, name), least_s=6) for name in (VIT_B, VIT_L)),
    *(Step(name=f"lever, {name}: layout", run=partial(layout, name), least_s=6) for name in (RESNET, VIT_B)),
    Step(name="lever, two processes on one GPU", run=processes, least_s=25, cuda_only=True),
    # Last, since a capture or a compilation that fails can leave the device in a bad state.
    Step(name="lever, CUDA graphs", run=graphs, least_s=5, cuda_only=True),
    Step(name="lever, torch.compile", run=compilation, least_s=30, cuda_only=True),
)
