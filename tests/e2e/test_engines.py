"""A single machine embeds in worker processes, a cluster on Ray, and the tables do not differ."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lance
import numpy as np
import psutil
import pyarrow as pa
import pytest
from commands import isthmus_process as isthmus
from corpora import Pair, pairs, write_parquet
from killing import is_worker
from pydantic import ValidationError
from stored import stored_rejects

from jobs.embed import EmbedConfig, prepare, run
from pipelines.cluster import machine
from pipelines.ingest.engines import early, processes, worker
from pipelines.ingest.engines.early import start as begin
from pipelines.store.faults import ONCE_VARIABLE, VARIABLE, InjectedFaultError

ROWS = 240
SMALL = {"encoder": "fake", "columns": {"key": "id"}, "block_rows": 16, "commit_rows": 64, "fragment_rows": 32}


def corpus_of(folder: Path, rows: int = ROWS) -> Path:
    """Pictures and captions that recur, and some broken pictures."""
    items = pairs(rows)
    for i in range(0, rows, 20):
        items[i] = Pair(items[i].key, b"not a picture", items[i].caption, items[i].year)
        items[i + 1] = Pair(items[i + 1].key, items[1].image, items[1].caption, items[i + 1].year)
    return write_parquet(folder / "c.parquet", items, row_group_rows=30)


def embed(corpus: Path, table: Path, **more: Any) -> Any:
    return run(EmbedConfig(**{"corpus": str(corpus), "table": str(table), **SMALL, **more}))


def contents(table: Path) -> tuple[pa.Table, list[dict[str, Any]]]:
    path = Path(f"{table}_rejects.lance")
    rejects = stored_rejects(str(table)).to_pylist() if path.exists() else []
    return lance.dataset(f"{table}.lance").to_table().sort_by("row_id"), rejects


def assert_same(table: Path, wanted: Path) -> None:
    found, other = contents(table), contents(wanted)
    assert found[1] == other[1]
    assert found[0].column_names == other[0].column_names
    for name in other[0].column_names:
        if name.endswith("_vector"):
            # Pictures are batched differently, which may change the last bit; in float16 that is a thousandth.
            step = 1e-3 if pa.types.is_float16(found[0][name].type.value_type) else 1e-7
            np.testing.assert_allclose(found[0][name].to_pylist(), other[0][name].to_pylist(), atol=1e-6, rtol=step)
        else:
            assert found[0][name].equals(other[0][name]), name


@pytest.fixture
def no_ray_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a separate process where nobody started Ray."""
    monkeypatch.setattr(machine, "_has_ray", lambda: False)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "more",
    [
        {"thumbnails": 16, "vector_dtype": "float16"},
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in ({}, {"embed": "text"}, {"embed": "image", "commit_rows": 1})
        ),
    ],
)
def test_both_engines_make_the_same_table(more: dict[str, Any], tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    on_ray = embed(corpus, tmp_path / "db" / "ray", engine="ray", **more)
    here = embed(corpus, tmp_path / "db" / "process", engine="process", **more)
    assert (on_ray.engine, here.engine, here.actors) == ("ray", "process", here.read_tasks)
    assert_same(tmp_path / "db" / "process", tmp_path / "db" / "ray")
    assert (on_ray.rows_in, on_ray.written, on_ray.rejected) == (here.rows_in, here.written, here.rejected)
    assert set(here.stage_seconds) == set(on_ray.stage_seconds)
    assert here.bottleneck in here.stage_seconds
    for report in (here, on_ray):
        assert report.ceiling_rows_per_s is not None
        assert report.ceiling_rows_per_s > 0
        assert report.hint is not None
        if report.bottleneck in ("decode", "encode"):
            assert " of a core decodes and " in report.hint


def test_one_machine_never_imports_ray(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, 40)
    config = {"corpus": str(corpus), "table": str(tmp_path / "db" / "t"), **SMALL}
    code = (
        "import json, sys; from jobs.embed import EmbedConfig, run; "
        f"report = run(EmbedConfig(**json.loads({json.dumps(json.dumps(config))}))); "
        "print(report.engine, report.rows_in, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["process", "40", "False"]


@pytest.mark.usefixtures("ray_session", "no_ray_yet")
@pytest.mark.slow
def test_two_processes_that_die_leave_the_rest_to_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = corpus_of(tmp_path)
    embed(corpus, tmp_path / "db" / "wanted", engine="ray")
    # Ray's workers were started earlier and do not see the fault.
    monkeypatch.setenv(VARIABLE, "encode:4:kill")
    report = embed(corpus, tmp_path / "db" / "t")
    assert (report.engine, report.rows_in) == ("ray", ROWS)
    assert "2 worker processes died one after the other (it ended by signal 9)" in caplog.text
    assert "Ray does the remaining work" in caplog.text
    assert_same(tmp_path / "db" / "t", tmp_path / "db" / "wanted")


@pytest.mark.parametrize("rows_of_a_group", [30, pytest.param(1_000, marks=pytest.mark.slow)])
def test_the_cores_share_the_work(rows_of_a_group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many shards each process takes some. A single shard is split among them, and is whole again afterwards."""
    monkeypatch.setattr(machine, "cores", lambda: 3)
    corpus = write_parquet(tmp_path / "c.parquet", pairs(ROWS), row_group_rows=rows_of_a_group)
    report = embed(corpus, tmp_path / "db" / "t", engine="process", commit_rows=ROWS, fragment_rows=ROWS)
    assert (report.actors, report.rows_in, report.written) == (3, ROWS, ROWS)
    embed(corpus, tmp_path / "db" / "wanted", engine="process", block_rows=ROWS)
    assert_same(tmp_path / "db" / "t", tmp_path / "db" / "wanted")
    again = embed(corpus, tmp_path / "db" / "t", engine="process")
    assert (again.rows_in, again.skipped) == (0, ROWS), "a shard that was cut is complete"


@pytest.mark.slow
def test_alone_it_goes_on_while_there_is_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process dies at its fourth block, with at least one group staged."""
    corpus = corpus_of(tmp_path)
    embed(corpus, tmp_path / "db" / "wanted", engine="process")
    monkeypatch.setenv(VARIABLE, "encode:4:kill")
    assert embed(corpus, tmp_path / "db" / "t", engine="process").rows_in == ROWS
    assert_same(tmp_path / "db" / "t", tmp_path / "db" / "wanted")


@pytest.mark.slow
def test_alone_it_gives_up_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "encode:1:kill")
    with pytest.raises(RuntimeError, match=r"5 worker processes died one after the other \(it ended by signal 9\)"):
        embed(corpus_of(tmp_path), tmp_path / "db" / "t", engine="process")
    monkeypatch.delenv(VARIABLE)
    assert embed(tmp_path / "c.parquet", tmp_path / "db" / "t", engine="process").rows_in == ROWS


def test_what_the_process_raises_is_raised_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mid_stage:1:raise")
    with pytest.raises(InjectedFaultError, match="injected fault at mid_stage") as caught:
        embed(corpus_of(tmp_path), tmp_path / "db" / "t", engine="process")
    assert any("in stage_blocks" in note for note in caught.value.__notes__)


class _Sticky(Exception):
    """An exception that cannot be unpickled: it takes two arguments and keeps one."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_a_thread_that_reads_ahead_passes_on_what_it_reads_and_what_it_raises() -> None:
    def tables() -> Iterator[pa.Table]:
        for number in range(3):
            yield pa.table({"n": [number]})
        raise OSError("the store broke off")

    read: list[int] = []
    with pytest.raises(OSError, match="the store broke off"):
        read.extend(table["n"][0].as_py() for table in worker.read_ahead(tables()))
    assert [table["n"][0].as_py() for table in worker.read_ahead(islice(tables(), 3))] == [0, 1, 2]


def test_errors_that_cannot_travel_say_what_they_were() -> None:
    assert str(worker.portable(_Sticky(1, 2))) == "_Sticky: 1 and 2"
    assert isinstance(worker.portable(PermissionError("no")), PermissionError)


def test_clusters_gpus_and_who_asks_for_actors_get_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {"corpus": str(corpus_of(tmp_path, 20)), "table": str(tmp_path / "t"), **SMALL}

    def here(**more: Any) -> bool:
        *_, settings = prepare(EmbedConfig(**given, **more))
        return processes.fits_this_machine(settings)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "_CLUSTER", str(tmp_path / "cluster"))
    monkeypatch.setattr(machine, "_GPUS", ())
    monkeypatch.setitem(sys.modules, "ray", None)  # type: ignore[arg-type]
    assert here()
    assert not here(engine="ray")
    assert not here(actors=2)
    monkeypatch.setattr(machine, "_GPUS", (str(tmp_path),))
    assert not here()
    assert here(device="cpu")
    monkeypatch.setattr(machine, "_GPUS", ())
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not here()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert here()
    (tmp_path / "cluster").touch()
    assert not here()
    with pytest.raises(ValidationError, match="only Ray uses them; drop them or drop --engine process"):
        EmbedConfig(**given, engine="process", actors=2)


def _worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children():
            if is_worker(child):
                return child
        time.sleep(0.02)
    raise AssertionError("it never came")


_WAITING_WORKER = """
import os, time, ray
from pipelines.cluster.session import ensure_ray
ensure_ray()
@ray.remote(num_cpus=1)
class Actor:
    def is_there(self): return True
@ray.remote(num_cpus=0)
def process(): return os.getpid()
actors = [Actor.remote() for _ in range(int(ray.cluster_resources()["CPU"]))]
ray.get([actor.is_there.remote() for actor in actors])
first = ray.get(process.remote())
time.sleep(4)
print(ray.get(process.remote()) == first)
"""


@pytest.mark.slow
def test_rays_workers_wait_for_the_next_rows_to_stage() -> None:
    """The actors use all cores, so that Ray would by default kill the worker after a second."""
    done = subprocess.run(
        [sys.executable, "-c", _WAITING_WORKER],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_ADDRESS": "local"},
        check=True,
    )
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_the_process_ends_with_its_driver(way: signal.Signals, tmp_path: Path) -> None:
    """Stopped in the middle of a picture, by Ctrl-C or by SIGKILL."""
    corpus = corpus_of(tmp_path, 40)
    command = [
        sys.executable, "-m", "jobs.cli", "embed", str(corpus), "--table", str(tmp_path / "db" / "t"), "--encoder",
        "fake", "--columns.key", "id",
    ]  # fmt: skip
    fault = {VARIABLE: "encode:1:hang", "RAY_ADDRESS": "local", ONCE_VARIABLE: str(tmp_path / "hangs")}
    # Children of a shell that runs this in the background would ignore Ctrl-C.
    process = subprocess.Popen(
        command,
        text=True,
        stderr=subprocess.PIPE,
        env=os.environ | fault,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    child = _worker_of(process)
    while not (tmp_path / "hangs").exists():
        time.sleep(0.02)
    process.send_signal(way)
    process.communicate(timeout=30)
    assert process.returncode != 0
    child.wait(timeout=30)
    again = isthmus("embed", corpus, "--table", tmp_path / "db" / "t", "--encoder", "fake", "--columns.key", "id")
    assert again.returncode == 0, again.stderr


def test_processes_that_start_early_do_the_work_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One early process takes part, another is not needed. An existing table, a store or a cluster starts none."""
    started: list[early.Started] = []
    monkeypatch.setattr(early, "start", lambda spec: started.append(begin(spec)) or started[-1])
    monkeypatch.setattr(processes, "start", lambda spec: pytest.fail("one was there"))
    monkeypatch.setattr(machine, "cores", lambda: 2)
    corpus = corpus_of(tmp_path, 12)
    assert embed(corpus, tmp_path / "db" / "t", engine="process").actors == 1
    assert len(started) == 2
    assert all(one.process.returncode is not None for one in started)
    embed(corpus, tmp_path / "db" / "t", engine="process")
    with pytest.raises(ValueError, match="the cluster has"):
        embed(corpus, tmp_path / "db" / "other", engine="ray", num_gpus=99)
    assert len(started) == 2


@pytest.mark.slow
def test_what_is_wrong_ends_the_processes_that_started_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[early.Started] = []
    monkeypatch.setattr(early, "start", lambda spec: started.append(begin(spec)) or started[-1])
    with pytest.raises(ValueError, match="no-such-encoder"):
        embed(corpus_of(tmp_path, 12), tmp_path / "db" / "t", engine="process", encoder="no-such-encoder")
    assert started
    assert all(one.process.returncode is not None for one in started)


def test_a_process_that_died_waiting_is_not_taken() -> None:
    with early.Reserve("fake", 1) as reserve:
        reserve._waiting[0].process.kill()
        reserve._waiting[0].process.wait()
        assert reserve.take() is None
