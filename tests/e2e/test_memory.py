"""Memory is bounded by the configuration, not by the corpus."""

from __future__ import annotations

from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import watched
from corpora import WORDS, picture

_DISTINCT = 500


def write_corpus(path: Path, rows: int) -> Path:
    """Many rows of small pictures; a few hundred distinct ones suffice to fill memory."""
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
    done = watched(
        "embed", corpus, "--table", table, "--encoder", "fake", "--columns.key", "id", "--commit-rows", 8192,
        "--fragment-rows", 4096, "--engine", "ray",
    )  # fmt: skip
    return done.driver_bytes, done.worker_bytes


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_four_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    small = peaks(write_corpus(tmp_path / "small.parquet", 50_000), tmp_path / "db" / "small")
    large = peaks(write_corpus(tmp_path / "large.parquet", 200_000), tmp_path / "db" / "large")
    assert lance.dataset(str(tmp_path / "db" / "large.lance")).count_rows() == 200_000
    print({"driver": (small[0] >> 20, large[0] >> 20), "worker": (small[1] >> 20, large[1] >> 20)})  # noqa: T201
    assert large[0] <= 1.10 * small[0], f"driver: {small[0] >> 20} MiB at 50k rows, {large[0] >> 20} MiB at 200k"
    assert large[1] <= 1.10 * small[1], f"worker: {small[1] >> 20} MiB at 50k rows, {large[1] >> 20} MiB at 200k"
