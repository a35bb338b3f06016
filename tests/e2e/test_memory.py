"""Memory is bounded by the configuration, not by the corpus."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import lance
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import WORDS, picture

_POLL_S = 0.4
_DISTINCT = 500


def write_corpus(path: Path, rows: int) -> Path:
    """Many rows of small pictures; a few hundred distinct ones are enough to fill memory with."""
    images = [picture(i, size=(16, 16), kind="PNG") for i in range(_DISTINCT)]
    schema = pa.schema([("id", pa.int64()), ("image", pa.binary()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 2_000):
            ids = range(start, min(start + 2_000, rows))
            captions = [f"{WORDS[i % len(WORDS)]} {i}" for i in ids]
            writer.write_table(pa.table([list(ids), [images[i % _DISTINCT] for i in ids], captions], schema=schema))
    return path


def peaks(corpus: Path, table: Path) -> tuple[int, int]:
    """Peak private memory, in bytes, of the driver and of the largest worker."""
    command = [sys.executable, "-m", "jobs.cli", "embed", str(corpus), "--table", str(table), "--encoder", "fake",
               "--columns.key", "id", "--commit-rows", "8192", "--fragment-rows", "4096"]  # fmt: skip
    process = subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": "local"}, stdout=subprocess.DEVNULL)
    driver, workers = 0, 0
    while process.poll() is None:
        try:
            root = psutil.Process(process.pid)
            driver = max(driver, root.memory_full_info().uss)
            for child in root.children(recursive=True):
                if child.name().startswith(("ray::MapWorker", "ray::Read", "ray::Map", "ray::stage", "ray::IDLE")):
                    workers = max(workers, child.memory_full_info().uss)
        except psutil.Error:
            pass
        time.sleep(_POLL_S)
    assert process.returncode == 0
    return driver, workers


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_four_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    small = peaks(write_corpus(tmp_path / "small.parquet", 50_000), tmp_path / "db" / "small")
    large = peaks(write_corpus(tmp_path / "large.parquet", 200_000), tmp_path / "db" / "large")
    assert lance.dataset(str(tmp_path / "db" / "large.lance")).count_rows() == 200_000
    print({"driver": (small[0] >> 20, large[0] >> 20), "worker": (small[1] >> 20, large[1] >> 20)})  # noqa: T201
    assert large[0] <= 1.10 * small[0], f"driver: {small[0] >> 20} MiB at 50k rows, {large[0] >> 20} MiB at 200k"
    assert large[1] <= 1.10 * small[1], f"worker: {small[1] >> 20} MiB at 50k rows, {large[1] >> 20} MiB at 200k"
