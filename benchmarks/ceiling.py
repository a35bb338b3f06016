"""The ceiling of an embed job: a bare loop that decodes and encodes on all cores, without Ray and without writing.

    python -m benchmarks.ceiling CORPUS MODEL BACKEND

Each core has one process with one torch thread, like the actors of a job. Before the clock starts, the pictures are in
memory and the model has encoded a batch. Prints the pictures per second of all processes together.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Queue

import pyarrow.parquet as pq

from encoders.protocol import Backend

_BATCH = 64


def loop(
    corpus: Path,
    model: str,
    backend: Backend,
    share: tuple[int, int],
    ready: Barrier,
    times: Queue[tuple[int, float]],
) -> None:
    """Decode and encode one process' share of the pictures: number, of how many. Put (pictures, seconds)."""
    from encoders.images import prepare
    from encoders.protocol import EncoderOptions
    from encoders.registry import describe, load

    options = EncoderOptions(threads=1, batch_size=_BATCH, backend=backend)
    transform = describe(model, options).image_transform
    assert transform is not None
    encoder = load(model, options)
    found = [data for path in sorted(corpus.glob("*.parquet")) for data in pq.read_table(path)["image"].to_pylist()]
    mine = found[share[0] :: share[1]]
    encoder.encode_images([prepare(data, transform) for data in mine[:_BATCH]])
    ready.wait()
    started = time.perf_counter()
    for start in range(0, len(mine), _BATCH):
        encoder.encode_images([prepare(data, transform) for data in mine[start : start + _BATCH]])
    times.put((len(mine), time.perf_counter() - started))


def measure(corpus: Path, model: str, backend: Backend = "auto") -> float:
    """Pictures per second, from the common start of all processes until the last one ends."""
    spawn = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0))
    ready, times = spawn.Barrier(cores), spawn.Queue()
    processes = [
        spawn.Process(target=loop, args=(corpus, model, backend, (part, cores), ready, times)) for part in range(cores)
    ]
    for process in processes:
        process.start()
    done = [times.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(n for n, _ in done) / max(seconds for _, seconds in done)


if __name__ == "__main__":
    sys.stdout.write(f"{measure(Path(sys.argv[1]), *sys.argv[2:])}\n")
