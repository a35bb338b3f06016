"""Part 6, training: pairs per second and memory of a step, and whether GradCache gives the same gradients in less."""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.base import Bench, Row, Skip, Step, check
from benchmarks.gpu.clock import free_memory, peak_gib, rate, seconds, tf32
from benchmarks.gpu.models import pixels
from benchmarks.gpu.trainer import Trainer, pairs, relative, same_random_numbers
from benchmarks.harness import ratio, take_turns
from encoders.losses.siglip import siglip
from encoders.runtime.device import is_out_of_memory
from encoders.training.models import plain_pixels

_BATCH, _SMALL_BATCH = 4096, 16
_CHUNKS, _SMALL_CHUNKS = (128, 256, 512, 1024), (4, 8)
_PLANTED_STEPS = 50
_ROUNDS = 2
_NO_ROOM = "does not fit in memory"


def _sizes(bench: Bench) -> tuple[int, tuple[int, ...]]:
    return bench.pick((_BATCH, _CHUNKS), (_SMALL_BATCH, _SMALL_CHUNKS))


def _fits(bench: Bench, step: Callable[[], object]) -> bool:
    """Whether there is memory for a step, which is taken."""
    free_memory(bench.device)
    try:
        step()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _peak(bench: Bench, what: str) -> Iterator[Row]:
    if (gib := peak_gib(bench.device)) is not None:
        yield Row(what=f"{what}: peak memory", figure=gib, unit="GiB")


def _timed(bench: Bench, what: str, step: Callable[[], object], count: int) -> Iterator[Row]:
    """Pairs a second of a step and its peak memory; a row that says so where it does not fit."""
    if not _fits(bench, step):
        yield Row(what=what, figure=_NO_ROOM, note=f"{count:,} pairs")
        return
    taken = statistics.median(seconds(bench.device, step) for _ in range(_ROUNDS))
    yield Row(what=what, figure=count / taken, unit="pairs/s", note=f"{count:,} pairs, {taken:.2f} s")
    yield from _peak(bench, what)


def exact(precision: str, bench: Bench) -> Iterator[Row]:
    """GradCache beside the plain step: loss and gradients. In fp32 at a small size, without dropout in both."""
    small = precision == "fp32"
    count, most = (64, 1e-5) if small else (bench.pick(2048, 16), 1e-2)
    chunks = (16, 32) if small else _sizes(bench)[1]
    trainer, batch = Trainer(bench, precision=precision), pairs(bench, count)
    trainer.model.eval()
    with tf32(matmul=False, convolution=False):
        loss = trainer.backward(batch)
        gradients = trainer.gradients()
        for chunk in chunks:
            cached = trainer.backward(batch, chunk)
            what = f"GradCache, {precision}, chunks of {chunk}"
            yield check(f"{what}: loss, relative difference", abs(cached - loss) / abs(loss), most, at_least=False)
            difference = relative(trainer.gradients(), gradients)
            yield check(f"{what}: gradients, relative difference", difference, most, at_least=False)
        if not small:
            trainer.bf16 = False
            trainer.backward(batch, chunks[0])
            rounding = relative(gradients, trainer.gradients())
            trainer.bf16 = True
            yield Row(what="bf16's own rounding: gradients of a plain step by those in fp32", figure=rounding)
        trainer.model.train()
        replayed = same_random_numbers(trainer, batch, chunks[0])
    yield check(f"GradCache, {precision}: second forward pass with dropout", replayed, 1e-5, at_least=False)


def steps(bench: Bench) -> Iterator[Row]:
    """A plain step, and GradCache at each chunk size: what fits, its peak memory, then pairs per second in turns."""
    count, chunks = _sizes(bench)
    trainer, batch = Trainer(bench), pairs(bench, count)
    ways: dict[str, Callable[[], float]] = {}
    for name, chunk in {"plain step": None, **{f"GradCache, chunks of {chunk}": chunk for chunk in chunks}}.items():
        way = partial(trainer.step, batch, chunk)
        if _fits(bench, way):
            ways[name] = rate(bench.device, way, count)
            yield from _peak(bench, f"InfoNCE, {name}")
        else:
            yield Row(what=f"InfoNCE, {name}", figure=_NO_ROOM, note=f"{count:,} pairs")
    figures = take_turns(ways, _ROUNDS, warmup=0)
    for name, found in figures.items():
        pace = statistics.median(found)
        yield Row(what=f"InfoNCE, {name}", figure=pace, unit="pairs/s", note=f"{count:,} pairs, {count / pace:.2f} s")
        if name != "plain step" and "plain step" in figures:
            yield Row(what=f"InfoNCE, {name}: time by a plain step's", figure=ratio(figures, "plain step", name))


def largest(bench: Bench) -> Iterator[Row]:
    """Batches doubled until one does not fit, plain and with GradCache."""
    count, chunks = _sizes(bench)
    for name, chunk in (("plain", None), (f"GradCache, chunks of {chunks[-2]}", chunks[-2])):
        trainer, fits, why = Trainer(bench), 0, "the part's time was up"
        most_s = bench.pick(12.0, 0.5)
        while bench.left_s > 2 * most_s or not fits:
            size = 2 * fits or count // 4
            started = time.perf_counter()
            if not _fits(bench, lambda: trainer.step(pairs(bench, size), chunk)):  # noqa: B023
                why = "the next one does not fit"
                break
            fits, taken = size, time.perf_counter() - started
            if 2 * taken > most_s:
                why = "the next one was not tried: it takes too long"
                break
        gib = peak_gib(bench.device)
        note = why if gib is None or chunk is None else f"{why}; peak of this one: {gib:.1f} GiB"
        yield Row(what=f"largest batch, {name}", figure=float(fits), unit="pairs", note=note)


def tuned(what: str, image: str, text: str, bench: Bench) -> Iterator[Row]:
    """A step in which less than everything trains."""
    if "lora" in image and importlib.util.find_spec("peft") is None:
        raise Skip("peft is not installed")
    count = _sizes(bench)[0]
    trainer, batch = Trainer(bench, image=image, text=text), pairs(bench, count)
    yield from _timed(bench, what, lambda: trainer.step(batch), count)


def sigmoid(bench: Bench) -> Iterator[Row]:
    """SigLIP's loss, with GradCache: plain it holds as much as InfoNCE."""
    count, chunks = _sizes(bench)
    trainer, batch = Trainer(bench, loss=siglip), pairs(bench, count)
    yield from _timed(bench, f"SigLIP, chunks of {chunks[-2]}", lambda: trainer.step(batch, chunks[-2]), count)


def checkpointing(bench: Bench) -> Iterator[Row]:
    """Activation checkpointing, where transformers has it for both towers."""
    trainer = Trainer(bench)
    for network in (trainer.image_network, trainer.text_network):
        if not network.supports_gradient_checkpointing:
            raise Skip(f"transformers has none for {type(network).__name__}")
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    count = _sizes(bench)[0]
    batch = pairs(bench, count)
    yield from _timed(bench, "InfoNCE, activation checkpointing", lambda: trainer.step(batch), count)


def inputs(bench: Bench) -> Iterator[Row]:
    """From prepared pictures to normalised pixels on the device, as the training loop does it."""
    transform = Trainer(bench).model.model.transform
    pictures = pixels(transform, bench.pick(512, 16))

    def copied() -> torch.Tensor:
        return plain_pixels(pictures, transform)["pixel_values"].to(bench.device, non_blocking=True)

    copied()
    taken = seconds(bench.device, copied, least_s=bench.pick(0.5, 0.0))
    yield Row(what="pictures made float32 and copied", figure=len(pictures) / taken, unit="pairs/s", note="one process")


def learns(bench: Bench) -> Iterator[Row]:
    """Fifty steps on a planted set: each picture has a caption of its own. A loss of ln n is what guessing gives, and
    towers that make all pairs alike reach it too."""
    count = 16
    trainer, batch = Trainer(bench, learning_rate=bench.pick(1e-4, 3e-3)), pairs(bench, count)
    losses = [trainer.step(batch) for _ in range(_PLANTED_STEPS)]
    share, note = losses[-1] / math.log(count), f"from {losses[0]:.3f} to {losses[-1]:.3f}"
    yield check("planted pairs, 50 steps: last loss by that of guessing", share, 0.5, at_least=False, note=note)


STEPS = (
    *(Step(name=f"GradCache, {name}: exact", run=partial(exact, name), least_s=8) for name in ("fp32", "bf16")),
    Step(name="planted pairs", run=learns, least_s=6),
    Step(name="InfoNCE, steps", run=steps, least_s=15),
    Step(name="training inputs", run=inputs, least_s=4),
    *(
        Step(name=what, run=partial(tuned, what, image, text), least_s=6)
        for what, image, text in (
            ("LoRA, rank 8, both towers", "lora:8", "lora:8"),
            ("image tower frozen (LiT)", "frozen", "full"),
            ("both towers frozen, heads alone", "head", "head"),
        )
    ),
    Step(name="SigLIP", run=sigmoid, least_s=6),
    Step(name="activation checkpointing", run=checkpointing, least_s=8),
    Step(name="largest batch", run=largest, least_s=20),
)
