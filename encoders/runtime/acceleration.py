"""What computes a tower's forward pass: torch, or on the CPU OpenVINO where it gives the same vectors faster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from encoders.runtime.kept_graphs import KeptGraph
from encoders.runtime.openvino_graph import OpenVinoGraph, Tensors, converted

log = logging.getLogger(__name__)
Forward = Callable[[Tensors], torch.Tensor]
# The least cosine to torch's own vectors, over the inputs of a trial.
_LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.995, "int8": 0.99}
# A trial costs about as much, and a run that is over before then is better off without.
_WORTH_S = 1.0
# Questions of a person come one at a time; nobody should wait for a trial.
_TRIAL_ROWS = 2


class ChosenForward:
    """A forward pass that torch computes until OpenVINO has shown, on a batch, that it gives the same vectors faster.

    The trial costs one to three seconds a tower. `auto` therefore waits until torch has worked for a second; where
    OpenVINO was asked for, the first batch is the trial, and need not show that it is faster. A graph that passed is
    kept, and the next run begins with it.
    """

    def __init__(
        self,
        forward: Forward,
        traced: Forward,
        *,
        precision: str,
        threads: int,
        asked: bool,
        kept: KeptGraph | None = None,
    ) -> None:
        """Start with the graph of an earlier run, or with torch.

        Args:
            forward: named tensors (n, …) → features (n, dim), by torch.
            traced: the same, in torch operations alone.
            precision: `fp32`, `bf16` or `int8`.
            threads: of the CPU.
            asked: whether OpenVINO was asked for.
            kept: where the graph belongs.
        """
        self._forward = forward
        self._traced: Forward | None = traced
        self._precision = precision
        self._threads = threads
        self._asked = asked
        self._kept = kept
        # It is opened by the first batch: pictures need no graph of the captions' tower.
        self._waiting = kept if kept is not None and kept.is_there(faster=not asked) else None
        self._settled = False
        self._batches = 0
        self._spent_s = 0.0

    @property
    def settled(self) -> bool:
        """Whether it is decided what computes."""
        return self._settled or self._waiting is not None

    def _take_up(self, kept: KeptGraph) -> None:
        self._waiting = None
        model = kept.open(faster=not self._asked)
        if model is None:
            return
        try:
            self._forward = OpenVinoGraph(model, precision=self._precision, threads=self._threads)
        except Exception as error:
            # The compiler raises whatever its C++ side does; torch stands by in any case.
            log.info("the graph that was kept is made anew: %s", _first_line(error))
            kept.drop()
            return
        self._traced, self._settled = None, True

    def __call__(self, inputs: Tensors) -> torch.Tensor:
        """Features (n, dim), not normalised, of named tensors (n, …)."""
        if self._waiting is not None:
            self._take_up(self._waiting)
        if self._settled:
            return self._forward(inputs)
        started = time.perf_counter()
        found = self._forward(inputs)
        took = time.perf_counter() - started
        self._batches += 1
        self._spent_s += took
        if self._asked or (self._batches > 1 and self._spent_s >= _WORTH_S and len(found) >= _TRIAL_ROWS):
            self._settled = True
            self._settle(inputs, found, took)
        return found

    def _settle(self, inputs: Tensors, found: torch.Tensor, took: float) -> None:
        """Go over to OpenVINO if it passes; int8 that strays too far is tried again as fp32."""
        traced, self._traced = self._traced, None
        assert traced is not None
        for precision in dict.fromkeys((self._precision, "fp32" if self._precision == "int8" else self._precision)):
            graph = self._tried(traced, precision, inputs, found, took)
            if graph is not None:
                self._forward = graph
                return

    def _tried(
        self, traced: Forward, precision: str, inputs: Tensors, found: torch.Tensor, took: float
    ) -> OpenVinoGraph | None:
        """The graph, if it is as good as torch on this batch."""
        try:
            model = converted(traced, _example(inputs), precision)
            graph = OpenVinoGraph(model, precision=precision, threads=self._threads)
            graph(inputs)  # lays out the weights
            started = time.perf_counter()
            vectors = graph(inputs)
            graph_took = time.perf_counter() - started
        except Exception as error:
            # The frontend raises whatever its C++ side does; torch stands by in any case.
            log.warning("OpenVINO does not take this tower in %s: %s", precision, _first_line(error))
            return None
        cosines = torch.nn.functional.cosine_similarity(vectors.float(), found.float(), dim=-1)
        # An input on which torch itself gives no numbers will be rejected; it says nothing about OpenVINO.
        cosine = min(cosines[found.isfinite().all(dim=-1)].tolist(), default=float("nan"))
        if not cosine >= _LEAST_COSINE[precision]:
            log.warning("OpenVINO strays from torch in %s: cosine %.5f; it is not used", precision, cosine)
            return None
        if graph_took > took and not self._asked:
            log.info("OpenVINO is no faster than torch here (%.3f s against %.3f s); it is not used", graph_took, took)
            return None
        log.info("OpenVINO, %s: %.3f s where torch takes %.3f s, cosine %.6f", precision, graph_took, took, cosine)
        if self._kept is not None and precision == self._precision:
            self._kept.save(model, faster=graph_took <= took)
        return graph


def is_settled(forward: Forward) -> bool:
    """Whether it needs no trial any more."""
    return isinstance(forward, ChosenForward) and forward.settled


def _example(inputs: Tensors) -> Tensors:
    """A batch to trace: of another size than the one that the trace is tried on, and of fewer tokens, so that whatever
    the tracer took for a constant is found out."""
    n = len(next(iter(inputs.values())))
    rows = torch.arange(1 if n == 2 else 2) % n
    return {
        name: tensor[rows] if tensor.dim() == 4 else tensor[rows][:, : max(1, tensor.shape[1] // 2)]
        for name, tensor in inputs.items()
    }


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
