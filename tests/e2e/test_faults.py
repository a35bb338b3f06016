"""Every step from reading a shard to reporting it fails once, in each way; the table ends as if nothing had failed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from corpora import Pair, pairs, write_parquet
from stored import stored_rejects
from stores import BUCKET, options, seaweedfs

from pipelines.store.faults import ONCE_VARIABLE, POINTS, VARIABLE

ROWS, COMMIT_ROWS = 400, 64
pytestmark = pytest.mark.timeout(400)
# In the middle of the job, except for points that are passed only once.
_PASS = {point: 1 if "lease" in point or "sweep" in point or "release" in point else 2 for point in POINTS}
_QUICK = {
    "ray": {("after_commit", "kill")},
    "process": {("after_commit", "kill"), ("mid_stage", "kill"), ("encode", "raise"), ("decode", "kill")},
}


def embed(corpus: Path, table: str, fault: dict[str, str], flags: tuple[str, ...] = ()) -> dict[str, Any] | None:
    """The report of `isthmus sync` in a separate process; None if it failed. On Ray unless flags say otherwise."""
    command = [
        sys.executable, "-m", "jobs.cli", "sync", str(corpus), "--table", table, "--encoder", "fake", "--columns.key",
        "id", "--block-rows", "16", "--commit-rows", str(COMMIT_ROWS), "--fragment-rows", "32", "--json", *flags,
    ]  # fmt: skip
    command += [] if "--engine" in flags else ["--engine", "ray"]
    environment = os.environ | {"RAY_ADDRESS": "local"} | fault
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode in (0, 1, -9), done.stderr
    return dict(json.loads(done.stdout)) if done.returncode == 0 else None


@pytest.fixture(autouse=True)
def no_suspects() -> None:
    """Pictures that killed processes of earlier tests would be decoded in a child, past this test's fault."""
    for left in Path(tempfile.gettempdir()).glob(f"isthmus-decoding-{os.getuid()}/*"):
        with left.open("rb") as file, contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            left.unlink()


def contents(table: str, storage: dict[str, str] | None = None) -> tuple[pa.Table, list[Any]]:
    """The table's rows and its rejects, sorted."""
    rows = lance.dataset(f"{table}.lance", storage_options=storage).to_table().sort_by("row_id")
    return rows, stored_rejects(table, storage).to_pylist()


def assert_equal(found: tuple[pa.Table, list[Any]], wanted: tuple[pa.Table, list[Any]]) -> None:
    assert found[1] == wanted[1]
    for name in wanted[0].column_names:
        if name.endswith("_vector"):
            np.testing.assert_allclose(found[0][name].to_pylist(), wanted[0][name].to_pylist(), atol=1e-6)
        else:
            assert found[0][name].equals(wanted[0][name]), name


def write_corpus(folder: Path, seed: int) -> Path:
    """Two files with a broken picture in every 25 rows; the second file depends on the seed."""
    items = pairs(ROWS)
    for i in range(0, ROWS, 25):
        items[i] = Pair(items[i].key, b"not a picture", items[i].caption, items[i].year)
    write_parquet(folder / "a.parquet", items[: ROWS // 2], row_group_rows=50)
    changed = [Pair(p.key, p.image, f"{p.caption} {seed}", p.year) for p in items[ROWS // 2 : ROWS - seed]]
    write_parquet(folder / "b.parquet", changed, row_group_rows=50)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with seaweedfs(tmp_path_factory.mktemp("weed")) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), 0)


@pytest.fixture(scope="module")
def calm(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, list[Any]]:
    """The table of an undisturbed run."""
    table = str(tmp_path_factory.mktemp("calm") / "t")
    assert embed(corpus, table, {})
    return contents(table)


def _cases() -> Iterator[Any]:
    for point, action, where, engine in product(POINTS, ("raise", "kill"), ("disk", "store"), ("ray", "process")):
        if point != "before_sweep":
            quick = (point, action) in _QUICK[engine] and where == "disk"
            first = (point, action, where, engine) == ("after_commit", "kill", "disk", "process")
            marks = () if first else pytest.mark.slow if quick else pytest.mark.heavy
            yield pytest.param(point, action, where, engine, marks=marks)


@pytest.mark.parametrize(("point", "action", "where", "engine"), _cases())
def test_a_fault_at_any_point_changes_nothing_in_the_table(
    point: str,
    action: str,
    where: str,
    engine: str,
    corpus: Path,
    calm: tuple[pa.Table, list[Any]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    storage, flags = None, ("--engine", engine)
    table = str(tmp_path / "db" / "t")
    if where == "store":
        storage = options(request.getfixturevalue("store"))
        table = f"s3://{BUCKET}/{point}-{action}-{engine}/t"
        flags += tuple(part for name, value in storage.items() for part in (f"--storage-options.{name}", value))
    marker = tmp_path / "fired"
    fault = {VARIABLE: f"{point}:{_PASS[point]}:{action}", ONCE_VARIABLE: str(marker)}
    runs = [embed(corpus, table, fault, flags)]
    assert marker.exists(), "the fault never happened"
    while runs[-1] is None and len(runs) < 3:
        runs.append(embed(corpus, table, fault, flags))
    last = runs[-1]
    assert last is not None
    assert_equal(contents(table, storage), calm)
    assert last["skipped"] + last["rows_in"] == ROWS
    assert last["redone"] <= COMMIT_ROWS
    again = embed(corpus, table, {}, flags)
    assert again is not None
    assert (again["rows_in"], again["commits"]) == (0, 0)


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["ray", "process"])
@pytest.mark.parametrize("action", ["raise", "kill"])
@pytest.mark.parametrize(
    "point", ["before_sweep", "after_record", "after_commit", "before_commit", "mid_stage", "encode"]
)
def test_a_fault_while_files_change_changes_nothing_either(
    point: str, action: str, engine: str, tmp_path: Path
) -> None:
    flags = ("--engine", engine)
    corpus, table = tmp_path / "c", str(tmp_path / "db" / "t")
    write_corpus(corpus, 0)
    assert embed(corpus, table, {}, flags)
    write_corpus(corpus, 30)
    fault = {VARIABLE: f"{point}:1:{action}", ONCE_VARIABLE: str(tmp_path / "fired")}
    runs = [embed(corpus, table, fault, flags)]
    assert (tmp_path / "fired").exists(), "the fault never happened"
    while runs[-1] is None and len(runs) < 3:
        runs.append(embed(corpus, table, fault, flags))
    clean = str(tmp_path / "clean" / "t")
    assert embed(corpus, clean, {})
    assert_equal(contents(table), contents(clean))
