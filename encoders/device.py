"""Where a model runs and in which precision, decided by what is there; and what happens when memory runs out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.protocol import EncoderOptions

log = logging.getLogger(__name__)
_CPU_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


class Runtime:
    """The device, the precision and the batch size of one encoder."""

    def __init__(self, options: EncoderOptions) -> None:
        """Choose them.

        Raises:
            ValueError: CUDA was asked for and is not there.
        """
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda': this process sees no CUDA device; use --device auto or cpu")
        cuda = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
        self.device = torch.device("cuda" if cuda else "cpu")
        self.autocast_dtype = _autocast_dtype(options, cuda=cuda)
        self.batch_size = options.batch_size
        if options.threads is not None and not cuda:
            torch.set_num_threads(options.threads)

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on the device, for inference, with channels-last convolutions."""
        model = model.eval().requires_grad_(False).to(self.device)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def tensor(self, array: NDArray[Any] | torch.Tensor) -> torch.Tensor:
        """An array on the device, through pinned memory where that lets the copy overlap with work."""
        tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
        if self.device.type == "cuda":
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    def run(self, forward: Callable[[Sequence[Any]], torch.Tensor], items: Sequence[Any]) -> NDArray[np.float32]:
        """L2-normalised vectors (n, dim) of n >= 1 items, batch by batch; memory errors halve the batch for good."""

        return self.run_plain(lambda part: torch.nn.functional.normalize(forward(part).float(), dim=-1), items)

    def run_plain(self, forward: Callable[[Sequence[Any]], torch.Tensor], items: Sequence[Any]) -> NDArray[np.float32]:
        """What `forward` gives for n >= 1 items, (n, …), batch by batch; memory errors halve the batch for good."""

        def batch(part: Sequence[Any]) -> NDArray[np.float32]:
            with torch.inference_mode(), self.autocast():
                return forward(part).float().cpu().numpy()

        pieces, self.batch_size = run_halving(batch, items, self.batch_size)
        return np.concatenate(pieces)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision in which to compute."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)


def run_halving(
    function: Callable[[Sequence[Any]], Any], items: Sequence[Any], batch_size: int
) -> tuple[list[Any], int]:
    """`function` over batches of the items; a batch that does not fit in memory is halved, and so are all later ones.

    Args:
        function: takes a slice of the items.
        items: the items.
        batch_size: the most items of a slice.

    Returns:
        The results in order, and the batch size that fitted.

    Raises:
        MemoryError: a single item does not fit.
    """
    results: list[Any] = []
    start = 0
    while start < len(items):
        try:
            results.append(function(items[start : start + batch_size]))
            start += batch_size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1:
                raise MemoryError(f"one input alone does not fit in the device's memory: {error}") from error
            batch_size = max(1, min(batch_size, len(items) - start) // 2)
            log.warning("the device's memory ran out; going on with batches of %d", batch_size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return results, batch_size


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the CPU's allocator."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _CPU_OUT_OF_MEMORY)


def _autocast_dtype(options: EncoderOptions, *, cuda: bool) -> torch.dtype | None:
    named = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if options.precision != "auto":
        if options.precision == "fp16" and not cuda:
            raise ValueError("precision 'fp16' needs CUDA; use fp32 or bf16 on the CPU")
        return named[options.precision]
    if not cuda:
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
