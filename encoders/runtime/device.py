"""Where a model runs and in which precision, decided by what is there; and what happens when memory runs out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.protocol import EncoderOptions, TowerCard
from encoders.runtime.acceleration import ChosenForward, Forward
from encoders.runtime.backend import check_backend, has_openvino, is_openvino_asked
from encoders.runtime.kept_graphs import place_of

log = logging.getLogger(__name__)
_CPU_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc")


class Runtime:
    """The device, the backend, the precision and the batch size of one encoder.

    Attributes:
        settles_at_once: whether OpenVINO was asked for, so that towers go over to it before their first input.
    """

    def __init__(self, options: EncoderOptions) -> None:
        """Choose them.

        Raises:
            ValueError: CUDA was asked for and is not there, or OpenVINO was and CUDA is.
            ModuleNotFoundError: OpenVINO was asked for and is not installed.
        """
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda': this process sees no CUDA device; use --device auto or cpu")
        cuda = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
        self.settles_at_once = is_openvino_asked(options)
        if cuda and self.settles_at_once:
            raise ValueError("backend 'openvino' and precision 'int8' are for the CPU, and there is CUDA: --device cpu")
        check_backend(options)
        self._tries_openvino = not cuda and options.backend != "torch" and has_openvino()
        if not cuda and options.backend == "auto" and not self._tries_openvino:
            log.info("torch computes on the CPU; pip install 'isthmus[cpu]' makes that several times faster")
        self._precision = "fp32" if options.precision == "auto" else options.precision
        self.device = torch.device("cuda" if cuda else "cpu")
        self.autocast_dtype = _autocast_dtype(options, cuda=cuda)
        self.batch_size = options.batch_size
        if options.threads is not None and not cuda:
            torch.set_num_threads(options.threads)

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on the device, for inference, with channels-last convolutions."""
        model = model.eval().requires_grad_(False).to(self.device)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def keeps(self, *towers: TowerCard) -> bool:
        """Whether a graph of one of the towers was kept by an earlier run: all of the encoder's files were read then,
        and they are the same."""
        places = [place_of(tower, self._precision) for tower in towers] if self._tries_openvino else []
        return any(place.is_there(faster=not self.settles_at_once) for place in places if place is not None)

    def fastest(
        self, forward: Forward, traced: Forward | None = None, *, tower: TowerCard | None = None
    ) -> Forward | ChosenForward:
        """A tower's forward pass, by the backend that the options and, for `auto`, its own first batches choose.

        Args:
            forward: named tensors (n, …) → features (n, dim), by torch; pictures of one size.
            traced: the same in torch operations alone, where `forward` is not.
            tower: by which a graph that passed is kept; None keeps none.
        """
        if not self._tries_openvino:
            return forward
        threads = torch.get_num_threads()
        return ChosenForward(
            forward,
            traced or forward,
            precision=self._precision,
            threads=threads,
            asked=self.settles_at_once,
            kept=None if tower is None else place_of(tower, self._precision),
        )

    def tensor(self, array: NDArray[Any] | torch.Tensor) -> torch.Tensor:
        """An array on the device, through pinned memory where that lets the copy overlap with work."""
        tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

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
    named = {"fp32": None, "int8": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if options.precision != "auto":
        if options.precision == "fp16" and not cuda:
            raise ValueError("precision 'fp16' needs CUDA; use fp32 or bf16 on the CPU")
        return named[options.precision]
    if not cuda:
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
