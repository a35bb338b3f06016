"""Part 6, training: pairs per second and memory of a step, and whether GradCache gives the same gradients in less."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.base import Bench, Row, Skip, Step, check
from benchmarks.gpu.clock import free_memory, peak_gib, seconds, tf32
from benchmarks.gpu.models import pixels
from benchmarks.gpu.trainer import Trainer, pairs, relative, same_random_numbers
from encoders.device import is_out_of_memory
from encoders.losses.siglip import siglip
from encoders.training.models import plain_pixels

_BATCH, _SMALL_BATCH = 4096, 16
_CHUNKS, _SMALL_CHUNKS = (128, 256, 512, 1024), (4, 8)
_PLANTED_STEPS = 50


def _sizes(bench: Bench) -> tuple[int, tuple[int, ...]]:
    return bench.pick((_BATCH, _CHUNKS), (_SMALL_BATCH, _SMALL_CHUNKS))


def _timed(bench: Bench, what: str, step: Callable[[], object], count: int) -> Iterator[Row]:
    """Pairs a second of a step, its seconds and its peak memory; a row that says so where it does not fit."""
    free_memory(bench.device)
    try:
        step()  # makes the optimiser's state
        taken = min(seconds(bench.device, step) for _ in range(2))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        yield Row(what=what, figure="does not fit in memory", note=f"{count:,} pairs")
        return
    yield Row(what=what, figure=count / taken, unit="pairs/s", note=f"{count:,} pairs, {taken:.2f} s")
    if (gib := peak_gib(bench.device)) is not None:
        yield Row(what=f"{what}: peak memory", figure=gib, unit="GiB")


def exact(precision: str, bench: Bench) -> Iterator[Row]:
    """GradCache beside the plain step: loss and gradients. In fp32 at a small size, without dropout in both."""
    if precision == "fp32":
        count, chunks, most = 64, (16, 32), 1e-5
    else:
        count, chunks, most = bench.pick(2048, 16), _sizes(bench)[1], 1e-2
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
        trainer.model.train()
        replayed = same_random_numbers(trainer, batch, chunks[0])
    yield check(f"GradCache, {precision}: second forward pass with dropout", replayed, 1e-5, at_least=False)


def steps(bench: Bench) -> Iterator[Row]:
    """A plain step, and GradCache at each chunk size."""
    count, chunks = _sizes(bench)
    trainer, batch = Trainer(bench), pairs(bench, count)
    yield from _timed(bench, "InfoNCE, plain step", lambda: trainer.step(batch), count)
    for chunk in chunks:
        yield from _timed(bench, f"InfoNCE, GradCache, chunks of {chunk}", partial(trainer.step, batch, chunk), count)


def largest(bench: Bench) -> Iterator[Row]:
    """Batches doubled until one does not fit, plain and with GradCache."""
    count, chunks = _sizes(bench)
    for name, chunk in (("plain", None), (f"GradCache, chunks of {chunks[-2]}", chunks[-2])):
        trainer, fits, why = Trainer(bench), 0, "the next one does not fit"
        size = count // 4
        while bench.left_s > 0:
            taken = _tried(bench, trainer, size, chunk)
            if taken is None:
                break
            fits, size = size, size * 2
            if 2 * taken > bench.pick(12.0, 0.5):
                why = "the next one was not tried: it takes too long"
                break
        yield Row(what=f"largest batch, {name}", figure=float(fits), unit="pairs", note=why)


def _tried(bench: Bench, trainer: Trainer, count: int, chunk: int | None) -> float | None:
    """Seconds of a step; None where it does not fit."""
    free_memory(bench.device)
    try:
        batch = pairs(bench, count)
        return seconds(bench.device, lambda: trainer.step(batch, chunk))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


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
    """Fifty steps on a planted set: each picture has a caption of its own."""
    trainer = Trainer(bench, learning_rate=bench.pick(3e-5, 3e-3))
    batch = pairs(bench, bench.pick(256, 16))
    losses = [trainer.step(batch) for _ in range(_PLANTED_STEPS)]
    note = f"from {losses[0]:.3f} to {losses[-1]:.3f}"
    yield check(
        "planted pairs, 50 steps: last loss by the first", losses[-1] / losses[0], 0.5, at_least=False, note=note
    )


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
