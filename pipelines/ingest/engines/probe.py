"""The engine of `isthmus plan`: times the run's own stages on a few rows, in this process. Writes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import psutil
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cluster.resources import Resources
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.engines.protocol import EnginePlan, Ran
from pipelines.ingest.estimating import ProbeSample, spread
from pipelines.ingest.planning import plan_work
from pipelines.ingest.sink.queueing import CommitQueue
from pipelines.ingest.stages.decoding import decode_block
from pipelines.ingest.stages.encoding import EncodeBlocks
from pipelines.ingest.stages.pipeline import Stages
from pipelines.ingest.stages.reading import ShardWork
from pipelines.rows.blocks import REASON, timing_columns
from pipelines.rows.contract import IMAGE_URI, POSITION, SHARD
from pipelines.sources.locate import range_end

_SHARDS = 8
_POLL_S = 0.01
_WARM_UP_ROWS = 8


class PeakMemory:
    """The largest resident memory of this process while the block runs, polled every 10 ms in a thread.

    Resident memory includes weights that are mapped from a file; actors on one machine share these pages. The poll can
    miss spikes shorter than its interval.

    Attributes:
        start: resident memory at the beginning, in bytes.
        peak: largest resident memory so far, in bytes.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self.start = self.peak = 0

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Update the peak with the current memory."""
        self.peak = max(self.peak, self._process.memory_info().rss)

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_S):
            self.look()


@dataclass
class _Counts:
    records: int = 0
    rows: int = 0
    rejected: int = 0
    sized_records: int = 0
    sized_bytes: int = 0
    table_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, block: pa.Table, table_columns: Sequence[str]) -> None:
        """Add the counts and times of an encoded block."""
        good = block.filter(pc.is_null(block[REASON]))
        self.rows += block.num_rows
        self.rejected += block.num_rows - good.num_rows
        self.table_bytes += good.select([name for name in table_columns if name in good.column_names]).nbytes
        for stage, name in timing_columns(block.schema).items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + pc.sum(block[name]).as_py()


class ProbeEngine:
    """Reads, decodes and encodes some rows of the work in this process, for `isthmus plan`. Commits nothing.

    Args:
        settings: the settings of the run.
        resources: CPUs and GPUs that the run will have.
        rows: approximate number of rows to sample, spread over the corpus.
        seconds: seconds after which no further block is started. The first block is always done.

    Attributes:
        sample: the measurements; None before `run`.
    """

    def __init__(self, settings: EmbedSettings, resources: Resources, *, rows: int, seconds: float) -> None:
        self._settings = settings
        self._resources = resources
        self._rows = rows
        self._seconds = seconds
        self.sample: ProbeSample | None = None

    def resources(self) -> Resources:
        """The CPUs and GPUs that the run will have."""
        return self._resources

    def plan(self, work: Sequence[ShardWork], block_rows: int) -> EnginePlan:
        """See `Engine.plan`. A block is no larger than a forward pass, so that a slow encoder ends in time."""
        settings = self._settings
        _, pools = plan_work(
            work, self._resources, block_rows, actors=settings.actors, gpus_per_actor=settings.gpus_per_actor
        )
        least = max(_WARM_UP_ROWS, settings.options.batch_size)
        return EnginePlan(pools=pools, block_rows=min(block_rows, self._rows, least))

    def run(
        self, stages: Stages, work: list[ShardWork], queue: CommitQueue | None, progress: Callable[[int], None]
    ) -> Ran:
        """See `Engine.run`. Nothing is staged, so the queue is not used.

        Raises:
            ValueError: the loaded encoder does not match its description.
            OSError: a shard's file cannot be read.
        """
        from encoders.runtime.backend import settled

        encoding = replace(stages.encoding, options=settled(stages.encoding.options))
        chosen = spread(work, _SHARDS)
        each = max(1, -(-self._rows // len(chosen)))
        counts = _Counts()
        with PeakMemory() as memory:
            started = time.perf_counter()
            encoder = EncodeBlocks(encoding)
            load_s = time.perf_counter() - started
            deadline = time.perf_counter() + self._seconds
            steps = _Steps(stages, encoder)
            for item in chosen:
                if counts.rows and time.perf_counter() > deadline:
                    break
                _probe_shard(stages, item, each, counts, steps, deadline)
                progress(counts.rows)
        self.sample = ProbeSample(
            **vars(counts),
            threads=encoding.options.threads or 1,
            load_s=load_s,
            encoder_bytes=memory.peak - memory.start,
            actor_bytes=memory.peak,
            cpu_share=round(steps.cpu_share, 3),
            gpu_bytes=_gpu_bytes(),
        )
        return Ran(engine="probe", cores=1, actors=1, read_tasks=1)


class _Steps:
    """Decodes and encodes blocks as the actors of a run do. The first block also warms up the encoder."""

    def __init__(self, stages: Stages, encoder: EncodeBlocks) -> None:
        self._decoding = stages.decoding
        self._encoder = encoder
        self._cold = True
        self._wall = self._busy = 0.0

    @property
    def cpu_share(self) -> float:
        """CPU seconds of this process divided by wall seconds, during decoding and encoding."""
        return self._busy / self._wall if self._wall else 1.0

    def __call__(self, block: pa.Table) -> pa.Table:
        wall, busy = time.perf_counter(), time.process_time()
        encoded = self._run(block)
        self._wall += time.perf_counter() - wall
        self._busy += time.process_time() - busy
        return encoded

    def _run(self, block: pa.Table) -> pa.Table:
        # Decode without the guard: its timer would end this process.
        decoded = block if self._decoding is None else decode_block(block, self._decoding)
        if self._cold:
            # The first rows of a block contain the pixels that they need, so they can be encoded alone.
            self._encoder.warm_up(decoded.slice(0, _WARM_UP_ROWS))
            self._cold = False
        return self._encoder.encode(decoded)


def _probe_shard(stages: Stages, item: ShardWork, rows: int, counts: _Counts, steps: _Steps, deadline: float) -> None:
    """Run the steps on the first blocks of a shard. Add their counts, and the bytes of the shard that they took."""
    first, before = counts.rows, counts.records
    for block in stages.read([item]):
        counts.records += len(set(zip(block[SHARD].to_pylist(), block[POSITION].to_pylist(), strict=True)))
        counts.add(steps(block), stages.schema.names)
        reached = _reached(block)
        if counts.rows - first >= rows or time.perf_counter() > deadline:
            break
    else:
        reached = item.shard.size_bytes
    if reached and not item.done:
        counts.sized_records += counts.records - before
        counts.sized_bytes += reached


def _reached(block: pa.Table) -> int:
    """The byte of the tar file up to which a block was read; 0 in other formats."""
    ends = (range_end(uri) for uri in block[IMAGE_URI].to_pylist() if uri)
    return max((end for end in ends if end is not None), default=0)


def _gpu_bytes() -> int | None:
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None
