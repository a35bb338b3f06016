"""Processes that decode into memory that they share with the one that encodes. They import no torch."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.images.prepare import prepare
from encoders.images.transform import ImageTransform

_SLOTS_A_PROCESS = 3
_START_S = 60.0
# Of a decoding process: pictures uint8 (slots, count, height, width, 3), the files, the transform.
_mine: tuple[NDArray[np.uint8], tuple[bytes, ...], ImageTransform] | None = None


def decoded(
    processes: int, files: tuple[bytes, ...], count: int, transform: ImageTransform
) -> Iterator[NDArray[np.uint8]]:
    """Pictures uint8 (count, height, width, 3) without end; each is overwritten when the next is asked for.

    Raises:
        multiprocessing.TimeoutError: none comes.
    """
    assert transform.fixed_size is not None
    shape = (processes * _SLOTS_A_PROCESS, count, *transform.fixed_size, 3)
    context = multiprocessing.get_context("spawn")
    memory = context.RawArray("B", int(np.prod(shape)))
    pictures = np.frombuffer(memory, np.uint8).reshape(shape)
    free: queue.Queue[int | None] = queue.Queue()
    for slot in range(len(pictures)):
        free.put(slot)
    with context.Pool(processes, _begin, (memory, shape, files, transform)) as pool:
        slots = pool.imap_unordered(_fill, iter(free.get, None))
        try:
            while True:
                slot = slots.next(_START_S)
                yield pictures[slot]
                free.put(slot)
        finally:
            free.put(None)


def _begin(memory: Any, shape: tuple[int, ...], files: tuple[bytes, ...], transform: ImageTransform) -> None:
    global _mine
    _mine = np.frombuffer(memory, np.uint8).reshape(shape), files, transform


def _fill(slot: int) -> int:
    assert _mine is not None
    pictures, files, transform = _mine
    for i, picture in enumerate(pictures[slot]):
        picture[:] = prepare(files[i % len(files)], transform)
    return slot
