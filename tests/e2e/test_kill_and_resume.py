"""A job that is killed at any moment and started again ends with exactly the rows of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from corpora import pairs, write_parquet
from killing import COMMIT_ROWS, assert_same, kill, rows, settled, start, victims, write_corpus

KILLS, TWICE = 100, 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "c.parquet")


@pytest.fixture(scope="module")
def calm(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of an undisturbed run."""
    folder = tmp_path_factory.mktemp("calm")
    process = start(corpus, folder / "db" / "t", folder / "log")
    process.communicate(timeout=300)
    assert process.returncode == 0, (folder / "log").read_text()
    return folder / "db" / "t"


@pytest.mark.heavy
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("engine", ["ray", "auto"])
def test_a_hundred_kills_of_anything_leave_the_table_of_an_undisturbed_run(
    corpus: Path, calm: Path, tmp_path: Path, engine: str
) -> None:
    """Kill drivers, tasks and actors at random moments. A finished table is compared, then a new one begins."""
    rng = random.Random(time.time_ns())
    log = tmp_path / "log"
    kills: Counter[str] = Counter()
    finished, gave_up, committed = 0, 0, 0
    process: subprocess.Popen[bytes] | None = None
    while finished == 0 or sum(kills.values()) < KILLS or process is not None:
        table = tmp_path / "db" / str(finished)
        if process is None:
            process = start(corpus, table, log, engine=engine)
        time.sleep(rng.uniform(0.2, 2.0))
        if process.poll() is not None:
            out, _ = process.communicate()
            if process.returncode == 0:
                assert_same(table, calm)
                assert json.loads(out)["redone"] <= COMMIT_ROWS
                finished, committed = finished + 1, 0
            else:
                gave_up += 1
            process = None
        elif sum(kills.values()) >= KILLS:
            continue
        elif rng.random() < 0.2 and sum(kills.values()) < KILLS - 1:
            kill(process)
            process, kills["driver"] = None, kills["driver"] + 1
            assert settled(table) >= committed, "a restart never loses what was committed"
            committed = settled(table)
        elif found := victims(process):
            victim = rng.choice(found)
            with contextlib.suppress(psutil.Error):
                name = victim.name()
                kind = "actor" if "MapWorker" in name else "worker" if name.startswith("ray::") else "one process"
                victim.kill()
                kills[kind] += 1
    print(dict(kills), {"finished": finished, "gave up": gave_up})  # noqa: T201


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ["ray", "process"])
def test_two_drivers_at_once_never_double_or_lose_a_row(corpus: Path, calm: Path, tmp_path: Path, engine: str) -> None:
    """One driver works; the other is told which one does, or it comes last and finds nothing to do."""
    rng = random.Random(time.time_ns())
    refused = 0
    for n in range(TWICE):
        table, logs = tmp_path / "db" / str(n), [tmp_path / f"{n}-{i}" for i in range(2)]
        both = [start(corpus, table, logs[0], engine=engine)]
        time.sleep(rng.choice([0.0, 0.0, rng.uniform(0.0, 3.0)]))
        both.append(start(corpus, table, logs[1], engine=engine))
        for process in both:
            process.communicate(timeout=300)
        codes = sorted(process.returncode for process in both)
        assert codes in ([0, 0], [0, 1]), [log.read_text() for log in logs]
        if codes == [0, 1]:
            refused += 1
            (loser,) = (i for i in range(2) if both[i].returncode)
            assert f"process {both[1 - loser].pid} on " in logs[loser].read_text(), "it names who holds the table"
        assert_same(table, calm)
    print({"pairs": TWICE, "refused": refused})  # noqa: T201
    assert refused


@pytest.mark.parametrize("engine", [pytest.param("ray", marks=pytest.mark.heavy), "process"])
def test_one_kill_after_a_commit_redoes_at_most_one_interval(tmp_path: Path, engine: str) -> None:
    corpus = write_parquet(tmp_path / "c.parquet", pairs(800), row_group_rows=50)
    table, log = tmp_path / "db" / "t", tmp_path / "log"
    process = start(corpus, table, log, engine=engine)
    while settled(table) == 0 and process.poll() is None:
        time.sleep(0.02)
    if process.poll() is None:
        kill(process)
    before = settled(table)
    assert before > 0

    again = start(corpus, table, log, engine=engine)
    out, _ = again.communicate(timeout=200)
    assert again.returncode == 0, log.read_text()
    report = json.loads(out)
    assert report["skipped"] == before
    assert report["rows_in"] == 800 - before
    assert rows(table)["row_id"].to_pylist() == [f"{i:05d}" for i in range(800)]
