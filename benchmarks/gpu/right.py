"""Part 2, right: the vectors of each model on the device beside those of the CPU in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.base import Bench, Row, Skip, Step, check
from benchmarks.gpu.clock import tf32
from benchmarks.gpu.models import captions, directory, pixels
from benchmarks.gpu.words import BERT, IMAGE_MODELS
from encoders.protocol import EncoderOptions, Precision
from encoders.registry import describe, load

Vectors = NDArray[np.float32]
PACKAGED = ("efficientnet-lite0", "minilm")
LEAST_COSINE: dict[Precision, float] = {"fp32": 0.99999, "bf16": 0.999, "fp16": 0.999}
MOST_DIFFERENCE = 1e-5
_COUNT, _SMALL_COUNT = 12, 5
# Which float32 products are rounded to TF32: (matrix products, convolutions).
_TF32 = {"TF32 off": (False, False), "TF32 as torch ships it": (False, True), "TF32 on": (True, True)}


def spec_of(bench: Bench, name: str) -> str:
    """What `encoders` calls a model.

    Raises:
        Skip: it is a packaged tower, and its package is not installed.
    """
    if name not in PACKAGED:
        return str(directory(bench, name))
    try:
        describe(name)
    except ModuleNotFoundError as error:
        raise Skip(str(error)) from error
    return name


def inputs_of(bench: Bench, name: str) -> list[Any]:
    """Pictures or captions for a model."""
    transform = describe(spec_of(bench, name)).image_transform
    count = bench.pick(_COUNT, _SMALL_COUNT)
    return captions(count) if transform is None else list(pixels(transform, count))


def encode_with(bench: Bench, name: str, device: str, precision: Precision) -> Callable[[Sequence[Any]], Vectors]:
    """The encode call of a model that is loaded as a user does it."""
    options = EncoderOptions(device=device, precision=precision, backend="torch", batch_size=64)  # type: ignore[arg-type]
    encoder = load(spec_of(bench, name), options)
    if encoder.card.tower("image") is not None:
        return encoder.encode_images
    return lambda texts: encoder.encode_texts(texts).vectors


@cache
def reference(bench: Bench, name: str) -> Vectors:
    """The CPU's vectors in fp32."""
    return encode_with(bench, name, "cpu", "fp32")(inputs_of(bench, name))


def least_cosine(a: Vectors, b: Vectors) -> float:
    """Of two lists of vectors of length 1, row by row; NaN where one holds no numbers."""
    cosines = (a.astype(np.float64) * b).sum(axis=1)
    return float(cosines.min()) if np.isfinite(cosines).all() else float("nan")


def spread(name: str, bench: Bench) -> Iterator[Row]:
    """The control: inputs whose vectors were all alike would hide what is wrong."""
    found = reference(bench, name)
    cosines = found @ found.T - 2 * np.eye(len(found))
    most = min(LEAST_COSINE.values())
    yield check(f"{name}: greatest cosine of two inputs", float(cosines.max()), most, at_least=False)


def vectors(name: str, precision: Precision, bench: Bench) -> Iterator[Row]:
    """One model in one precision."""
    found = encode_with(bench, name, bench.device, precision)(inputs_of(bench, name))
    yield check(
        f"{name}, {precision}: least cosine", least_cosine(found, reference(bench, name)), LEAST_COSINE[precision]
    )


def independence(name: str, mode: str, bench: Bench) -> Iterator[Row]:
    """A vector must not depend on the batch size, the order and the neighbours, in fp32."""
    encode, inputs = encode_with(bench, name, bench.device, "fp32"), inputs_of(bench, name)
    matmul, convolution = _TF32[mode]
    with tf32(matmul=matmul, convolution=convolution):
        whole = encode(inputs)
        ways = (
            np.concatenate([encode([item]) for item in inputs]),
            np.concatenate([encode(inputs[i : i + 3]) for i in range(0, len(inputs), 3)]),
            encode(inputs[::-1])[::-1],
            encode([*inputs[:2], *([inputs[-1]] * 5)])[:2],
        )
    worst = max(float(np.abs(found - whole[: len(found)]).max()) for found in ways)
    what = f"{name}, fp32, {mode}: greatest difference between batches"
    # The product never turns it on.
    found_out = Row(what=what, figure=worst)
    yield found_out if mode == "TF32 on" else check(what, worst, MOST_DIFFERENCE, at_least=False)
    yield Row(what=f"{name}, fp32, {mode}: least cosine", figure=least_cosine(whole, reference(bench, name)))


def _steps() -> Iterator[Step]:
    names = (*IMAGE_MODELS, BERT, *PACKAGED)
    for name in names:
        yield Step(name=f"{name}: spread", run=partial(spread, name), least_s=4)
        for precision in LEAST_COSINE:
            run = partial(vectors, name, precision)
            yield Step(name=f"{name}, {precision}", run=run, least_s=1.5, cuda_only=precision == "fp16")
    for name in names:
        for mode in _TF32:
            run = partial(independence, name, mode)
            yield Step(name=f"{name}: independence, {mode}", run=run, cuda_only=mode != "TF32 off")


STEPS = tuple(_steps())
