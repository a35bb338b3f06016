"""Embed jobs that get killed, and what is left of them: for tests of recovery."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import psutil
import pyarrow as pa
from corpora import pairs, write_parquet
from stored import stored_rejects

ROWS, COMMIT_ROWS = 3_000, 64
_KEPT = ["row_id", "item_id", "caption", "year", "image_vector", "text_vector"]


def command(corpus: Path, table: Path, engine: str = "ray") -> list[str]:
    return [
        sys.executable, "-m", "jobs.cli", "embed", str(corpus), "--table", str(table), "--encoder", "fake",
        "--columns.key", "id", "--block-rows", "16", "--commit-rows", str(COMMIT_ROWS), "--fragment-rows", "32",
        "--json", "--engine", engine,
    ]  # fmt: skip


def write_corpus(path: Path) -> Path:
    """3,000 rows, every thirtieth with an unreadable picture."""
    items = pairs(ROWS)
    for i in range(0, ROWS, 30):
        items[i] = type(items[i])(items[i].key, b"not a picture", items[i].caption, items[i].year)
    return write_parquet(path, items, row_group_rows=50)


def start(corpus: Path, table: Path, log: Path, ray: str = "local", engine: str = "ray") -> subprocess.Popen[bytes]:
    """Start the job, on its own Ray or on the one at that address; its output goes to the log."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            command(corpus, table, engine), stdout=subprocess.PIPE, stderr=stream, env=os.environ | {"RAY_ADDRESS": ray}
        )


def rows(table: Path) -> pa.Table:
    return lance.dataset(f"{table}.lance").to_table(columns=_KEPT).sort_by("row_id")


def rejects(table: Path) -> pa.Table:
    return stored_rejects(str(table))


def settled(table: Path) -> int:
    try:
        return lance.dataset(f"{table}.lance").count_rows()
    except ValueError:
        return 0


def is_agent(process: psutil.Process) -> bool:
    try:
        return "agent" in " ".join([process.name(), *process.cmdline()]).lower()
    except psutil.NoSuchProcess:
        return True


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the driver alone; its Ray must end with it."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(children, timeout=15)
    # Ray's own agents look for their parent only every minute or so; everything that could touch the table must be
    # gone.
    alive = [process for process in alive if not is_agent(process)]
    assert not alive, f"processes outlive their driver: {[p.name() for p in alive]} ({len(gone)} gone)"


def assert_same(table: Path, calm: Path) -> None:
    """Compare vectors to a few parts in 10^7: float sums depend on the batch, and engines cut batches differently."""
    found, wanted = rows(table), rows(calm)
    for name in _KEPT:
        if name.endswith("_vector"):
            np.testing.assert_allclose(_matrix(found[name]), _matrix(wanted[name]), atol=1e-6)
        else:
            assert found[name].equals(wanted[name]), name
    assert rejects(table).equals(rejects(calm))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    assert column.null_count == 0
    array = column.combine_chunks()
    return np.asarray(array.flatten()).reshape(len(array), -1)


def is_worker(process: psutil.Process) -> bool:
    """Whether the process runs the stages of a small job."""
    return any("engines.worker" in part for part in process.cmdline())


def victims(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Processes of tasks and actors; Ray's own processes die only with the driver or the machine."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if child.name().startswith("ray::") or is_worker(child)]
    except psutil.Error:
        return []
