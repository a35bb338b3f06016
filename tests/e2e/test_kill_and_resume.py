"""A job killed at any moment and started again ends with the very rows of one that was never disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lance
import psutil
import pyarrow as pa
import pytest
from corpora import pairs, write_parquet

KILLS = 10
_KEPT = ["row_id", "item_id", "caption", "year", "image_vector", "text_vector"]


def command(corpus: Path, table: Path) -> list[str]:
    return [
        sys.executable, "-m", "jobs.cli", "embed", str(corpus), "--table", str(table), "--encoder", "fake",
        "--columns.key", "id", "--block-rows", "16", "--commit-rows", "64", "--fragment-rows", "32", "--json",
    ]  # fmt: skip


def start(corpus: Path, table: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        return subprocess.Popen(
            command(corpus, table), stdout=subprocess.PIPE, stderr=stream, env=os.environ | {"RAY_ADDRESS": "local"}
        )


def rows(table: Path) -> pa.Table:
    return lance.dataset(f"{table}.lance").to_table(columns=_KEPT).sort_by("row_id")


def rejects(table: Path) -> pa.Table:
    return lance.dataset(f"{table}_rejects.lance").to_table().sort_by("reject_id")


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
    """SIGKILL to the driver alone; its Ray must go with it."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(children, timeout=15)
    # Ray's own agents look for their parent every minute or so; all that could touch the table must be gone.
    alive = [process for process in alive if not is_agent(process)]
    assert not alive, f"processes outlive their driver: {[p.name() for p in alive]} ({len(gone)} gone)"


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_ten_kills_leave_the_table_of_an_undisturbed_run(tmp_path: Path) -> None:
    items = pairs(1_500)
    for i in range(0, len(items), 30):
        items[i] = type(items[i])(items[i].key, b"not a picture", items[i].caption, items[i].year)
    corpus = write_parquet(tmp_path / "c.parquet", items, row_group_rows=50)
    log = tmp_path / "log"
    calm = start(corpus, tmp_path / "db" / "calm", log)
    out, _ = calm.communicate(timeout=300)
    assert calm.returncode == 0, log.read_text()
    report = json.loads(out)

    rng = random.Random(time.time_ns())
    table, progress = tmp_path / "db" / "killed", []
    for _ in range(KILLS):
        process = start(corpus, table, log)
        deadline = time.monotonic() + rng.uniform(1.0, 14.0)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        if process.poll() is None:
            kill(process)
        progress.append(settled(table))
    final = start(corpus, table, log)
    out, _ = final.communicate(timeout=300)
    assert final.returncode == 0, log.read_text()

    assert progress == sorted(progress), "a restart never loses what was committed"
    last = json.loads(out)
    assert last["skipped"] + last["rows_in"] == report["rows_in"] == 1_500
    assert rows(table).equals(rows(tmp_path / "db" / "calm"))
    killed, calm_rejects = (rejects(tmp_path / "db" / name) for name in ("killed", "calm"))
    assert killed.equals(calm_rejects)


def test_one_kill_after_a_commit_redoes_at_most_one_interval(tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "c.parquet", pairs(800), row_group_rows=50)
    table, log = tmp_path / "db" / "t", tmp_path / "log"
    process = start(corpus, table, log)
    while settled(table) == 0 and process.poll() is None:
        time.sleep(0.02)
    if process.poll() is None:
        kill(process)
    before = settled(table)
    assert before > 0

    again = start(corpus, table, log)
    out, _ = again.communicate(timeout=200)
    assert again.returncode == 0, log.read_text()
    report = json.loads(out)
    assert report["skipped"] == before
    assert report["rows_in"] == 800 - before
    assert rows(table)["row_id"].to_pylist() == [f"{i:05d}" for i in range(800)]
