"""A timed sample of a corpus: the job's own read, decode and encode functions, run in this process on a few rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import psutil
import pyarrow as pa
import pyarrow.compute as pc

from encoders.description import Description
from encoders.protocol import Encoder
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.estimating import ProbeSample, spread
from pipelines.ingest.planning import PoolPlan
from pipelines.ingest.stage_settings import decode_settings, encode_settings, read_settings, rows_of_a_block
from pipelines.ingest.stages.decoding import decode_block
from pipelines.ingest.stages.encoding import EncodeSettings, encode_block
from pipelines.ingest.stages.reading import ShardWork, read_blocks
from pipelines.rows.blocks import REASON, timing_columns
from pipelines.rows.contract import IMAGE_URI, POSITION, SHARD
from pipelines.sources.base import Source
from pipelines.sources.locate import range_end

_SHARDS = 8
_POLL_S = 0.01
_WARM_UP_ROWS = 8


class PeakMemory:
    """The largest resident memory of this process while the block runs, polled every 10 ms in a thread.

    Resident memory counts weights that are mapped from a file; actors of one machine share those pages. Memory of
    spikes shorter than the poll is missed.
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
        """Take the memory of this moment into account."""
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
        """Count an encoded block in."""
        good = block.filter(pc.is_null(block[REASON]))
        self.rows += block.num_rows
        self.rejected += block.num_rows - good.num_rows
        self.table_bytes += good.select([name for name in table_columns if name in good.column_names]).nbytes
        for stage, name in timing_columns(block.schema).items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + pc.sum(block[name]).as_py()


def probe(
    source: Source,
    work: Sequence[ShardWork],
    schema: pa.Schema,
    description: Description,
    settings: EmbedSettings,
    pools: PoolPlan,
    *,
    rows: int,
    seconds: float,
) -> ProbeSample:
    """Read, decode and encode some rows of shards that are still to do, spread over the corpus.

    Args:
        source: the corpus.
        work: the shards to do; at least one.
        schema: the table's schema.
        description: the encoder.
        settings: of the run.
        pools: how the run would share the machine.
        rows: about how many rows to sample.
        seconds: after which no further block is begun; the first block is always done.

    Raises:
        ValueError: the encoder is not the one described.
        OSError: a shard's file cannot be read.
    """
    from encoders.registry import load
    from encoders.runtime.backend import settled

    encode = encode_settings(description, settings, pools)
    chosen = spread(work, _SHARDS)
    each = max(1, -(-rows // len(chosen)))
    counts = _Counts()
    with PeakMemory() as memory:
        started = time.perf_counter()
        encoder = load(encode.spec, settled(encode.options))
        load_s = time.perf_counter() - started
        deadline = time.perf_counter() + seconds
        steps = _Steps(encoder, encode, description, settings)
        for item in chosen:
            if counts.rows and time.perf_counter() > deadline:
                break
            blocks = _blocks_of(source, item, description, settings, schema, each)
            _probe_shard(item, blocks, each, counts, schema, steps, deadline)
    return ProbeSample(
        **vars(counts),
        threads=encode.options.threads or 1,
        load_s=load_s,
        encoder_bytes=memory.peak - memory.start,
        actor_bytes=memory.peak,
        cpu_share=round(steps.cpu_share, 3),
        gpu_bytes=_gpu_bytes(),
    )


class _Steps:
    """Decode and encode of a block, as the run's actors do them; the very first call warms the encoder up."""

    def __init__(
        self, encoder: Encoder, encode: EncodeSettings, description: Description, settings: EmbedSettings
    ) -> None:
        decode = decode_settings(description, settings)
        self._decode: Callable[[pa.Table], pa.Table] = (
            (lambda block: decode_block(block, decode)) if decode is not None else (lambda block: block)
        )
        self._encoder = encoder
        self._settings = encode
        self._cold = True
        self._wall = self._busy = 0.0

    @property
    def cpu_share(self) -> float:
        """Seconds of this process' threads by seconds of the clock, while it decoded and encoded."""
        return self._busy / self._wall if self._wall else 1.0

    def __call__(self, block: pa.Table) -> pa.Table:
        wall, busy = time.perf_counter(), time.process_time()
        encoded = self._run(block)
        self._wall += time.perf_counter() - wall
        self._busy += time.process_time() - busy
        return encoded

    def _run(self, block: pa.Table) -> pa.Table:
        decoded = self._decode(block)
        if self._cold:
            # The first pictures of a block carry their pixels, so that its head can stand alone.
            encode_block(decoded.slice(0, _WARM_UP_ROWS), self._encoder, self._settings)
            self._cold = False
        return encode_block(decoded, self._encoder, self._settings)


def _blocks_of(
    source: Source, item: ShardWork, description: Description, settings: EmbedSettings, schema: pa.Schema, rows: int
) -> Iterator[pa.Table]:
    """The shard's blocks, no larger than a forward pass, so that a slow encoder is not asked for too much."""
    most = rows_of_a_block(description, settings)
    small = min(most, rows, max(_WARM_UP_ROWS, settings.options.batch_size))
    read = read_settings([item.shard.uri], description, settings, schema, small)
    return read_blocks(source, [item], read, settings.corpus_storage)


def _probe_shard(
    item: ShardWork,
    blocks: Iterator[pa.Table],
    rows: int,
    counts: _Counts,
    schema: pa.Schema,
    steps: _Steps,
    deadline: float,
) -> None:
    """Count in the first blocks of a shard, and how much of it they were."""
    first, before = counts.rows, counts.records
    for block in blocks:
        counts.records += len(set(zip(block[SHARD].to_pylist(), block[POSITION].to_pylist(), strict=True)))
        counts.add(steps(block), schema.names)
        reached = _reached(block)
        if counts.rows - first >= rows or time.perf_counter() > deadline:
            break
    else:
        reached = item.shard.size_bytes
    if reached and not item.done:
        counts.sized_records += counts.records - before
        counts.sized_bytes += reached


def _reached(block: pa.Table) -> int:
    """The byte of its tar up to which a block was read, 0 in other formats."""
    ends = (range_end(uri) for uri in block[IMAGE_URI].to_pylist() if uri)
    return max((end for end in ends if end is not None), default=0)


def _gpu_bytes() -> int | None:
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None
