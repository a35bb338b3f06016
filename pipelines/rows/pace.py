"""How fast a run goes and could go, from when each block was ready and the seconds to decode and encode it.

The *ceiling* is the pace of the same workers if they did nothing but decode and encode. It uses the costs of the first
blocks, or of the last if those are lower because encoders found a faster way meanwhile. The *steady* pace is that of
the rows after the first blocks, so that start-up does not count.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

# Number of blocks at each end from which the ceiling is measured, and the fewest blocks that give a pace.
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
    """The blocks of a run; only the first and the last ones are kept.

    Attributes:
        first: the blocks that were ready first, at most 16.
        latest: the blocks that were ready last, at most 16.
        rows: number of rows of all blocks.
        last: when the last block was ready, Unix seconds.
    """

    first: list[BlockTime] = field(default_factory=list)
    latest: list[BlockTime] = field(default_factory=list)
    rows: int = 0
    last: float = 0.0

    def add(self, blocks: Iterable[BlockTime]) -> None:
        """Add blocks, in any order."""
        for block in blocks:
            self.first = sorted([*self.first, block])[:_WINDOW]
            self.latest = sorted([*self.latest, block])[-_WINDOW:]
            self.rows += block.rows
            self.last = max(self.last, block.ready)

    def costs(self) -> tuple[float, float] | None:
        """(decode, encode) worker seconds per row: medians over the first blocks or over the last, whichever is less.

        None if there are too few blocks.
        """
        if len(self.first) < _FEWEST:
            return None
        return min(_medians(self.first), _medians(self.latest), key=sum)

    def steady_rows_per_s(self, workers: int) -> float | None:
        """Rows per second after each encode worker has made one block; None if too few blocks follow."""
        start = self.first[: max(workers, 1)]
        if len(self.first) < len(start) + _FEWEST or self.last <= start[-1].ready:
            return None
        return (self.rows - sum(block.rows for block in start)) / (self.last - start[-1].ready)


def _medians(blocks: list[BlockTime]) -> tuple[float, float]:
    decode, encode = zip(*((b.decode_s / b.rows, b.encode_s / b.rows) for b in blocks), strict=True)
    return statistics.median(decode), statistics.median(encode)


@dataclass(frozen=True, kw_only=True)
class StageWorkers:
    """The workers that decode and encode.

    Attributes:
        encoders: number of encode actors or worker processes.
        decoders: number of CPUs that only decode; 0 if the encoders also decode.
        gpus: number of GPUs of all encoders; 0 on the CPU.
    """

    encoders: int
    decoders: int = 0
    gpus: float = 0.0

    def ceiling(self, decode_s: float, encode_s: float) -> float:
        """Rows per second that these workers could decode and encode, given the seconds per row of each.

        >>> StageWorkers(encoders=2).ceiling(0.004, 0.006)
        200.0
        >>> StageWorkers(encoders=1, decoders=4, gpus=1).ceiling(0.008, 0.001)
        500.0
        """
        if not self.decoders:
            return self.encoders / max(decode_s + encode_s, 1e-9)
        return min(self.decoders / max(decode_s, 1e-9), self.encoders / max(encode_s, 1e-9))

    def wanting(self, decode_s: float, encode_s: float) -> str:
        """The bottleneck, and what to add, as a message.

        >>> StageWorkers(encoders=1, decoders=4, gpus=1).wanting(0.010, 0.001)
        'decode-bound: +6 CPU per GPU'
        >>> StageWorkers(encoders=2, decoders=40, gpus=2).wanting(0.010, 0.001)
        'encode-bound: GPUs are the limit; 10 CPU per GPU keep them busy, there are 20'
        >>> StageWorkers(encoders=2).wanting(0.001, 0.003)
        'encode-bound: 25 % of a core decodes and 75 % encodes; add cores or a GPU, or use a smaller model'
        """
        if self.decoders:
            there = self.decoders / self.gpus
            each = math.ceil(self.encoders * decode_s / max(encode_s, 1e-9) / self.gpus)
            if each > there:
                return f"decode-bound: +{math.ceil(each - there)} CPU per GPU"
            return f"encode-bound: GPUs are the limit; {each} CPU per GPU keep them busy, there are {there:g}"
        share = decode_s / max(decode_s + encode_s, 1e-9)
        remedy = (
            "use --preprocessing fast or add cores" if share > 0.5 else "add cores or a GPU, or use a smaller model"
        )
        bound = "decode" if share > 0.5 else "encode"
        return f"{bound}-bound: {share:.0%} of a core decodes and {1 - share:.0%} encodes; {remedy}".replace("%", " %")
