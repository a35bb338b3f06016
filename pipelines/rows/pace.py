"""How fast a run goes and how fast it could: from when each block was ready, and what it took to decode and encode it.

The *ceiling* is what the same workers would do if they did nothing but decode and encode, by what the first blocks took
them, or the last, where encoders found a faster way meanwhile. The *steady* pace is that of the rows after the first
blocks, so that no start counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

# The blocks by which the ceiling is measured, at each end, and the fewest that make a pace.
_WINDOW, _FEWEST = 16, 4


@dataclass(frozen=True, kw_only=True, order=True)
class BlockTime:
    """A block: when its vectors were ready (Unix seconds), its rows, and the worker seconds of its stages."""

    ready: float
    rows: int
    decode_s: float
    encode_s: float


@dataclass
class Pace:
    """The blocks of a run, of which only the first and the last are kept.

    Attributes:
        first: those that were ready first.
        latest: those that were ready last.
        rows: of all blocks.
        last: when the last one was ready, Unix seconds.
    """

    first: list[BlockTime] = field(default_factory=list)
    latest: list[BlockTime] = field(default_factory=list)
    rows: int = 0
    last: float = 0.0

    def add(self, blocks: Iterable[BlockTime]) -> None:
        """Count blocks in, in whatever order."""
        for block in blocks:
            self.first = sorted([*self.first, block])[:_WINDOW]
            self.latest = sorted([*self.latest, block])[-_WINDOW:]
            self.rows += block.rows
            self.last = max(self.last, block.ready)

    def costs(self) -> tuple[float, float] | None:
        """Worker seconds that a row takes to decode and to encode: medians over the first blocks, or over the last,
        whichever took less. None before there are enough."""
        if len(self.first) < _FEWEST:
            return None
        return min(_medians(self.first), _medians(self.latest), key=sum)

    def steady_rows_per_s(self, workers: int) -> float | None:
        """Rows per second from when each encode worker has given a block until the end; None if that is too short."""
        start = self.first[: max(workers, 1)]
        if len(self.first) < len(start) + _FEWEST or self.last <= start[-1].ready:
            return None
        return (self.rows - sum(block.rows for block in start)) / (self.last - start[-1].ready)


def _medians(blocks: list[BlockTime]) -> tuple[float, float]:
    decode, encode = zip(*((b.decode_s / b.rows, b.encode_s / b.rows) for b in blocks), strict=True)
    return statistics.median(decode), statistics.median(encode)


@dataclass(frozen=True, kw_only=True)
class StageWorkers:
    """Who decodes and who encodes.

    Attributes:
        encoders: actors or processes that encode.
        decoders: CPUs that decode beside them; 0 where those that encode also decode.
        gpus: GPUs of all encoders, 0 on the CPU.
    """

    encoders: int
    decoders: int = 0
    gpus: float = 0.0

    def ceiling(self, decode_s: float, encode_s: float) -> float:
        """Rows per second that they could decode and encode, by the seconds that a row takes.

        >>> StageWorkers(encoders=2).ceiling(0.004, 0.006)
        200.0
        >>> StageWorkers(encoders=1, decoders=4, gpus=1).ceiling(0.008, 0.001)
        500.0
        """
        if not self.decoders:
            return self.encoders / max(decode_s + encode_s, 1e-9)
        return min(self.decoders / max(decode_s, 1e-9), self.encoders / max(encode_s, 1e-9))

    def wanting(self, decode_s: float, encode_s: float) -> str:
        """What to add, in words.

        >>> StageWorkers(encoders=1, decoders=4, gpus=1).wanting(0.010, 0.001)
        'decode-bound: +6 CPU per GPU'
        >>> StageWorkers(encoders=2, decoders=40, gpus=2).wanting(0.010, 0.001)
        'encode-bound: GPUs are the limit; 10 CPU per GPU keep them busy, there are 20'
        >>> StageWorkers(encoders=2).wanting(0.001, 0.003)
        'encode-bound: of a core, 25 % decodes and 75 % encodes; more cores, a GPU, or a smaller model'
        """
        if self.decoders:
            there = self.decoders / self.gpus
            each = math.ceil(self.encoders * decode_s / max(encode_s, 1e-9) / self.gpus)
            if each > there:
                return f"decode-bound: +{math.ceil(each - there)} CPU per GPU"
            return f"encode-bound: GPUs are the limit; {each} CPU per GPU keep them busy, there are {there:g}"
        share = decode_s / max(decode_s + encode_s, 1e-9)
        remedy = "--preprocessing fast, or more cores" if share > 0.5 else "more cores, a GPU, or a smaller model"
        bound = "decode" if share > 0.5 else "encode"
        return f"{bound}-bound: of a core, {share:.0%} decodes and {1 - share:.0%} encodes; {remedy}".replace("%", " %")
