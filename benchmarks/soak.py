"""An hour of faults against a corpus that grows, changes and shrinks: after every round the table must be what a clean
run over the corpus of that moment gives.

    python benchmarks/soak.py --minutes 60 --folder /tmp/soak

A round changes the corpus, disturbs one or more runs of `isthmus sync` in a way drawn by chance (SIGKILL to the driver,
to an actor or worker, several of them; a fault point; two drivers at once; a kill while the corpus changes again), lets
one run end, and compares rows, vectors, digests and rejects with a table made from nothing. Now and then `isthmus
maintain` and `isthmus rejects retry` run in between. Needs the package `psutil`; prints one JSON object, and exits 1 at
the first difference, leaving the folder as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lance
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.faults import ONCE_VARIABLE, POINTS, VARIABLE

_ROUND_LIMIT_S = 240.0
_WAYS = ("driver", "worker", "many", "point", "two", "moving")


def picture(rng: random.Random) -> bytes:
    """A small PNG, one of a few hundred: pictures recur."""
    import io

    colours = np.random.default_rng(rng.randrange(300)).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((24, 24)).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[: rng.randrange(40, len(data))] if rng.random() < 0.04 else data


def write_file(path: Path, rng: random.Random) -> None:
    """A Parquet file of up to 400 rows, keys of its own, some pictures broken."""
    n = rng.randrange(1, 400)
    rows = {
        "id": [f"{path.stem}-{i:04d}" for i in range(n)],
        "image": pa.array([picture(rng) for _ in range(n)], pa.binary()),
        "caption": [f"thing {rng.randrange(200)}" for _ in range(n)],
    }
    whole = path.with_suffix(".tmp")
    pq.write_table(pa.table(rows), whole, row_group_size=40)
    whole.replace(path)


def change(corpus: Path, rng: random.Random, round_number: int) -> str:
    """One change of the corpus: what it was."""
    files = sorted(corpus.glob("*.parquet"))
    kind = "add" if len(files) < 3 else rng.choice(["add", "replace", "replace", "remove", "touch"])
    if kind == "add":
        write_file(corpus / f"f{round_number}.parquet", rng)
    elif kind == "replace":
        write_file(rng.choice(files), rng)
    elif kind == "remove":
        rng.choice(files).unlink()
    else:
        os.utime(rng.choice(files))
    return kind


def isthmus(*arguments: str, environment: dict[str, str] | None = None, log: Path) -> subprocess.Popen[bytes]:
    """A process of the command line, in a session of its own."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env=os.environ | {"RAY_ADDRESS": "local"} | (environment or {}),
            start_new_session=True,
        )


def sync(corpus: Path, table: str, log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """`isthmus sync` with small commits."""
    return isthmus(
        "sync", str(corpus), "--table", table, "--encoder", "fake", "--columns.key", "id", "--max-delete-rate", "1",
        "--block-rows", "16", "--fragment-rows", "32", "--commit-rows", "64",
        environment=environment, log=log,
    )  # fmt: skip


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a driver and all that it started."""
    with_children = [psutil.Process(process.pid)] if psutil.pid_exists(process.pid) else []
    for parent in with_children:
        for child in parent.children(recursive=True):
            _kill(child)
        _kill(parent)
    process.wait()


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def disturb(way: str, corpus: Path, table: str, log: Path, rng: random.Random, marker: Path) -> int:
    """Run, and disturb; how many processes were killed, or faults made."""
    if way == "point":
        point, action = rng.choice(sorted(POINTS)), rng.choice(["raise", "kill"])
        fault = {VARIABLE: f"{point}:{rng.randrange(1, 4)}:{action}", ONCE_VARIABLE: str(marker)}
        sync(corpus, table, log, fault).wait(_ROUND_LIMIT_S)
        return int(marker.exists())
    if way == "two":
        both = [sync(corpus, table, log) for _ in range(2)]
        for process in both:
            process.wait(_ROUND_LIMIT_S)
        return 1
    process = sync(corpus, table, log)
    kills = 0
    for _ in range(rng.randrange(2, 5) if way == "many" else 1):
        deadline = time.monotonic() + rng.uniform(0.5, 9.0)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is not None:
            break
        if way in ("driver", "moving") or (way == "many" and rng.random() < 0.3):
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            break
        workers = [p for p in psutil.Process(process.pid).children(recursive=True) if p.name().startswith("ray::")]
        if workers:
            _kill(rng.choice(workers))
            kills += 1
    if way in ("driver", "moving"):
        return kills
    try:
        process.wait(_ROUND_LIMIT_S)
    except subprocess.TimeoutExpired:
        end(process)
    return kills


def contents(table: str) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Rows and rejects, sorted; attempts aside, which a retry counts."""
    rows = lance.dataset(f"{table}.lance").to_table().sort_by("row_id")
    path = Path(f"{table}_rejects.lance")
    rejects = lance.dataset(str(path)).to_table().drop_columns(["attempt"]) if path.exists() else None
    return rows, rejects.sort_by("reject_id").to_pylist() if rejects is not None else []


def difference(found: tuple[pa.Table, list[Any]], wanted: tuple[pa.Table, list[Any]]) -> str | None:
    """What differs, None if nothing does."""
    if found[1] != wanted[1]:
        return f"rejects: {len(found[1])}, not {len(wanted[1])}"
    for name in wanted[0].column_names:
        a, b = found[0][name], wanted[0][name]
        if name.endswith("_vector"):
            if len(a) != len(b) or not np.allclose(a.to_pylist(), b.to_pylist(), atol=1e-6):
                return f"column {name}"
        elif not a.equals(b):
            return f"column {name}: {len(a)} rows, {len(b)} in a clean run"
    return None


def soak(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Rounds until the time is over, or something differs; the report."""
    rng = random.Random(seed)
    corpus, table, log = folder / "corpus", str(folder / "db" / "t"), folder / "log"
    corpus.mkdir(parents=True)
    change(corpus, rng, 0)
    ways, changes, kills, rounds, retried = Counter[str](), Counter[str](), 0, 0, 0
    started = time.monotonic()
    problem = None
    while problem is None and (time.monotonic() - started) / 60 < minutes:
        rounds += 1
        way = rng.choice(_WAYS)
        ways[way] += 1
        changes[change(corpus, rng, rounds)] += 1
        kills += disturb(way, corpus, table, log, rng, folder / f"marker{rounds}")
        if way == "moving":
            changes[change(corpus, rng, 10_000 + rounds)] += 1
        if Path(f"{table}.lance").exists() and rng.random() < 0.15:
            retried += 1
            isthmus("rejects", "retry", table, "--reason", "truncated_image", log=log).wait(_ROUND_LIMIT_S)
        code = sync(corpus, table, log).wait(_ROUND_LIMIT_S)
        if code != 0:
            problem = f"round {rounds} ({way}): the last run ended with {code}; see {log}"
            break
        clean = str(folder / "clean" / "t")
        if sync(corpus, clean, log).wait(_ROUND_LIMIT_S) != 0:
            problem = f"round {rounds}: the clean run failed; see {log}"
            break
        if found := difference(contents(table), contents(clean)):
            problem = f"round {rounds} ({way}, {dict(changes)}): {found}"
            break
        shutil.rmtree(folder / "clean")
        sys.stderr.write(f"round {rounds}: {way}, {kills} kills and faults so far\n")
    return {
        "minutes": round((time.monotonic() - started) / 60, 1),
        "rounds": rounds,
        "ways": dict(ways),
        "changes": dict(changes),
        "kills_and_faults": kills,
        "retries": retried,
        "rows": lance.dataset(f"{table}.lance").count_rows(),
        "versions": lance.dataset(f"{table}.lance").version,
        "seed": seed,
        "problem": problem,
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, required=True, help="must not be there")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    report = soak(given.folder, given.minutes, given.seed)
    sys.stdout.write(json.dumps(report) + "\n")
    return int(report["problem"] is not None)


if __name__ == "__main__":
    raise SystemExit(main())
