"""Time, memory and number formats of the device: CUDA's calls, and what stands for them on a CPU."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

_GIB = 2**30


def synchronise(device: str) -> None:
    """Wait until the device has done all it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(device: str, work: Callable[[], object], least_s: float = 0.0) -> float:
    """Seconds of one call, the mean over as many as take `least_s`, one at least."""
    synchronise(device)
    started, calls = time.perf_counter(), 0
    while True:
        work()
        calls += 1
        if least_s == 0.0:
            synchronise(device)
            return time.perf_counter() - started
        # Looked at only now and then: a device that is asked after each call is never busy.
        if calls & (calls - 1) == 0:
            synchronise(device)
            if time.perf_counter() - started >= least_s:
                return (time.perf_counter() - started) / calls


def rate(device: str, work: Callable[[], object], items: int, least_s: float = 0.0) -> Callable[[], float]:
    """For `take_turns`: items a second of a call that works on so many."""
    return lambda: items / seconds(device, work, least_s)


def free_memory(device: str) -> None:
    """Give back what nobody holds, and count the peak from here."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> float | None:
    """The most memory that tensors took since `free_memory`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / _GIB if device == "cuda" else None


@contextlib.contextmanager
def tf32(*, matmul: bool, convolution: bool) -> Iterator[None]:
    """Whether CUDA may round the inputs of float32 products to TF32. Torch ships with convolutions alone."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class Lanes:
    """A copy stream beside the compute stream; on a CPU both are the program's own order."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._copy: Any = torch.cuda.Stream() if self._cuda else None
        self._compute: Any = torch.cuda.current_stream() if self._cuda else None

    def staging(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the host that the device can read by itself."""
        return torch.empty(shape, dtype=dtype, pin_memory=self._cuda)

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in such memory."""
        return self.staging(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def upload(self, staged: torch.Tensor) -> torch.Tensor:
        """A copy on the device. What computes later waits for it; what computes now does not."""
        if not self._cuda:
            return staged.clone()
        with torch.cuda.stream(self._copy):
            tensor = staged.to("cuda", non_blocking=True)
        self._compute.wait_stream(self._copy)
        tensor.record_stream(self._compute)
        return tensor

    def mark(self) -> Callable[[], None]:
        """Waits, when called, until all is done that was asked for before this moment."""
        if not self._cuda:
            return lambda: None
        event = torch.cuda.Event()
        event.record(self._compute)
        return event.synchronize
