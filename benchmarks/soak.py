"""An hour of faults on corpora that grow, change and shrink.

After every round the table must equal the result of a clean run over the current corpus.

    python benchmarks/soak.py --minutes 60 --folder /tmp/soak

There are two corpora, one on disk and one on a real S3 server, behind proxies that fail a share of all requests in
every way that a store fails. Corpus and table have separate stores. A round changes a corpus and disturbs one or more
runs of `isthmus sync` in a random way: SIGKILL to the driver, to an actor or worker, or to several of them; a fault
point; two drivers at once; `isthmus maintain` at the same time; a kill while the corpus changes again. Then one run
ends undisturbed, and its rows, vectors, digests and rejects are compared with those of a new table. Some rounds also
run `isthmus rejects retry`. Needs the `dev` extra. Prints one JSON object. Exits with 1 at the first difference, and
leaves the folder as it is.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for the servers of the tests
from faulty_store import TRANSIENT, FaultyStore, faulty
from stores import BUCKET, OTHER_BUCKET, client, options, other_options, seaweedfs

from pipelines.ledger.rejects import REJECT_ID, TOKEN
from pipelines.store.faults import ONCE_VARIABLE, POINTS, VARIABLE

_ROUND_LIMIT_S = 240.0
_WAYS = ("driver", "worker", "many", "point", "two", "maintain", "moving")
_TIMEOUTS = {"request_timeout": "1s", "connect_timeout": "1s"}


@dataclass
class Place:
    """The place of a corpus and its table.

    Attributes:
        name: "disk" or "store".
        corpus: the corpus' URI.
        table: the table's URI, without ".lance".
        corpus_storage: store options of the corpus, without faults.
        storage: store options of the table, without faults.
        faulty: command-line flags that reach corpus and table through the faulty proxies.
        faulty_storage: the flags among them for the table.
        files: names of the corpus' files.
    """

    name: str
    corpus: str
    table: str
    corpus_storage: dict[str, str] = field(default_factory=dict)
    storage: dict[str, str] = field(default_factory=dict)
    faulty: tuple[str, ...] = ()
    faulty_storage: tuple[str, ...] = ()
    files: set[str] = field(default_factory=set)

    @property
    def calm(self) -> tuple[str, ...]:
        """Command-line flags that reach corpus and table without faults."""
        return (*_flags("corpus-storage-options", self.corpus_storage), *_flags("storage-options", self.storage))

    def put(self, name: str, data: bytes) -> None:
        """Write or replace a file of the corpus atomically."""
        if self.storage:
            self._client().put_object(Bucket=BUCKET, Key=f"soak/{name}", Body=data)
        else:
            part = Path(self.corpus, f"{name}.part")
            part.write_bytes(data)
            part.replace(Path(self.corpus, name))
        self.files.add(name)

    def get(self, name: str) -> bytes:
        """The bytes of a file of the corpus."""
        if self.storage:
            return bytes(self._client().get_object(Bucket=BUCKET, Key=f"soak/{name}")["Body"].read())
        return Path(self.corpus, name).read_bytes()

    def remove(self, name: str) -> None:
        """Remove a file of the corpus."""
        if self.storage:
            self._client().delete_object(Bucket=BUCKET, Key=f"soak/{name}")
        else:
            Path(self.corpus, name).unlink()
        self.files.remove(name)

    def dataset(self, uri: str) -> lance.LanceDataset | None:
        """A table of this place; None if it does not exist."""
        try:
            return lance.dataset(uri, storage_options=self.storage)
        except ValueError as error:
            if "not found" in str(error):
                return None
            raise

    def _client(self) -> Any:
        return client(self.corpus_storage["aws_endpoint"])


def _flags(option: str, values: dict[str, str]) -> tuple[str, ...]:
    return tuple(part for name, value in values.items() for part in (f"--{option}.{name}", value))


@contextmanager
def places(folder: Path, rate: float, seed: int) -> Iterator[tuple[list[Place], tuple[FaultyStore, FaultyStore]]]:
    """Both places, and the proxies in front of the store.

    Args:
        folder: folder for the corpus, the tables and the server.
        rate: chance of each fault per request.
        seed: random seed of the faults.
    """
    (folder / "corpus").mkdir(parents=True)
    disk = Place("disk", str(folder / "corpus"), str(folder / "db" / "t"))
    rates = dict.fromkeys(TRANSIENT, rate)
    with (
        seaweedfs(folder / "weed") as endpoint,
        faulty(endpoint, rates, seed=seed) as reads,
        faulty(endpoint, rates, seed=seed + 1) as writes,
    ):
        through_table = _flags("storage-options", other_options(writes.endpoint) | _TIMEOUTS)
        through = (*_flags("corpus-storage-options", options(reads.endpoint) | _TIMEOUTS), *through_table)
        corpus, table = f"s3://{BUCKET}/soak", f"s3://{OTHER_BUCKET}/db/t"
        store = Place("store", corpus, table, options(endpoint), other_options(endpoint), through, through_table)
        yield [disk, store], (reads, writes)


def picture(rng: random.Random) -> bytes:
    """One of 300 small PNGs, so that pictures recur. Some are truncated."""
    colours = np.random.default_rng(rng.randrange(300)).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((24, 24)).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[: rng.randrange(40, len(data))] if rng.random() < 0.04 else data


def parquet_file(stem: str, rng: random.Random) -> bytes:
    """A Parquet file of up to 400 rows with unique keys and some broken pictures."""
    n = rng.randrange(1, 400)
    rows = {
        "id": [f"{stem}-{i:04d}" for i in range(n)],
        "image": pa.array([picture(rng) for _ in range(n)], pa.binary()),
        "caption": [f"thing {rng.randrange(200)}" for _ in range(n)],
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(rows), buffer, row_group_size=40)
    return buffer.getvalue()


def change(place: Place, rng: random.Random, number: int) -> str:
    """Make one random change of the corpus. Return its kind."""
    files = sorted(place.files)
    kind = "add" if len(files) < 3 else rng.choice(["add", "replace", "replace", "remove", "touch"])
    if kind == "add":
        place.put(f"f{number}.parquet", parquet_file(f"f{number}", rng))
        return kind
    name = rng.choice(files)
    if kind == "replace":
        place.put(name, parquet_file(Path(name).stem, rng))
    elif kind == "remove":
        place.remove(name)
    else:
        place.put(name, place.get(name))
    return kind


def isthmus(*arguments: str, environment: dict[str, str] | None = None, log: Path) -> subprocess.Popen[bytes]:
    """Start an isthmus command as a process in its own session."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env=os.environ | {"RAY_ADDRESS": "local"} | (environment or {}),
            start_new_session=True,
        )


def sync(
    place: Place,
    log: Path,
    *,
    table: str | None = None,
    environment: dict[str, str] | None = None,
    engine: str = "auto",
) -> subprocess.Popen[bytes]:
    """Start `isthmus sync` with small commits. If `table` is given, it syncs this table instead, without faults."""
    return isthmus(
        "sync", place.corpus, "--table", table or place.table, "--encoder", "fake", "--columns.key", "id",
        "--max-delete-rate", "1", "--block-rows", "16", "--fragment-rows", "32", "--commit-rows", "64",
        "--engine", engine, *(place.calm if table else place.faulty), environment=environment, log=log,
    )  # fmt: skip


def maintain(place: Place, log: Path) -> subprocess.Popen[bytes]:
    """Start `isthmus maintain`, which keeps two versions."""
    flags = ("--keep-versions", "2", "--wait-s", "60", *place.faulty_storage)
    return isthmus("maintain", place.table, *flags, log=log)


def end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to a driver and all its child processes."""
    with_children = [psutil.Process(process.pid)] if psutil.pid_exists(process.pid) else []
    for parent in with_children:
        for child in parent.children(recursive=True):
            _kill(child)
        _kill(parent)
    process.wait()


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::") or any("engines.worker" in part for part in process.cmdline())
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def disturb(way: str, place: Place, log: Path, rng: random.Random, marker: Path) -> int:
    """Run and disturb the run. Return the number of killed processes or injected faults."""
    engine = rng.choice(("auto", "ray"))
    if way == "point":
        point, action = rng.choice(sorted(POINTS)), rng.choice(["raise", "kill"])
        fault = {VARIABLE: f"{point}:{rng.randrange(1, 4)}:{action}", ONCE_VARIABLE: str(marker)}
        sync(place, log, environment=fault, engine=engine).wait(_ROUND_LIMIT_S)
        return int(marker.exists())
    if way in ("two", "maintain"):
        first = sync(place, log, engine=engine)
        for process in (first, maintain(place, log) if way == "maintain" else sync(place, log)):
            process.wait(_ROUND_LIMIT_S)
        return 1
    process = sync(place, log, engine=engine)
    kills = 0
    for _ in range(rng.randrange(2, 5) if way == "many" else 1):
        deadline = time.monotonic() + (rng.uniform(0.5, 9.0) if engine == "ray" else rng.uniform(0.3, 2.0))
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is not None:
            break
        if way in ("driver", "moving") or (way == "many" and rng.random() < 0.3):
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            break
        workers = [p for p in psutil.Process(process.pid).children(recursive=True) if _is_worker(p)]
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


_ORDER = [(name, "ascending") for name in ("row_id", "source", "caption")]


def contents(place: Place, table: str) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Rows and rejects, sorted. The column of attempts is left out, because a retry changes it."""
    rows, rejects = place.dataset(f"{table}.lance"), place.dataset(f"{table}_rejects.lance")
    assert rows is not None
    lost = rejects.to_table().drop_columns(["attempt", REJECT_ID, TOKEN]).sort_by(_ORDER).to_pylist() if rejects else []
    return rows.to_table().sort_by("row_id"), lost


def difference(found: tuple[pa.Table, list[Any]], wanted: tuple[pa.Table, list[Any]]) -> str | None:
    """The first difference in words; None if there is none."""
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


def soak(folder: Path, minutes: float, rate: float, seed: int) -> dict[str, Any]:
    """Run rounds until the time is over or something differs. Return the report."""
    rng, log = random.Random(seed), folder / "log"
    ways, changes, kills, rounds, retried = Counter[str](), Counter[str](), 0, 0, 0
    started = time.monotonic()
    problem = None
    with places(folder, rate, seed) as (both, proxies):
        while problem is None and (time.monotonic() - started) / 60 < minutes:
            rounds += 1
            place, way = both[rounds % 2], rng.choice(_WAYS)
            ways[f"{place.name}: {way}"] += 1
            changes[change(place, rng, rounds)] += 1
            kills += disturb(way, place, log, rng, folder / f"marker{rounds}")
            if way == "moving":
                changes[change(place, rng, 10_000 + rounds)] += 1
            if rng.random() < 0.15 and place.dataset(f"{place.table}.lance"):
                retried += 1
                flags = ("--reason", "truncated_image", *place.faulty)
                isthmus("rejects", "retry", place.table, *flags, log=log).wait(_ROUND_LIMIT_S)
            problem = check(place, folder, rounds, log)
            sys.stderr.write(f"round {rounds}: {place.name}, {way}; {kills} kills and faults so far\n")
        tables = {place.name: place.dataset(f"{place.table}.lance") for place in both}
        return {
            "minutes": round((time.monotonic() - started) / 60, 1),
            "rounds": rounds,
            "ways": dict(sorted(ways.items())),
            "changes": dict(changes),
            "kills_and_faults": kills,
            "requests": sum(sum(proxy.requests.values()) for proxy in proxies),
            "requests_failed": dict(sum((proxy.faults for proxy in proxies), Counter[str]())),
            "retries": retried,
            "rows": {name: dataset.count_rows() for name, dataset in tables.items() if dataset},
            "versions": {name: dataset.version for name, dataset in tables.items() if dataset},
            "seed": seed,
            "problem": problem,
        }


def check(place: Place, folder: Path, number: int, log: Path) -> str | None:
    """Compare an undisturbed run with a clean one. Return the problem in words; None if there is none."""
    if (code := sync(place, log).wait(_ROUND_LIMIT_S)) != 0:
        return f"round {number}, {place.name}: the last run ended with {code}; see {log}"
    clean = f"{place.table.rsplit('/', 1)[0]}/clean{number}/t"
    if sync(place, log, table=clean, engine="ray").wait(_ROUND_LIMIT_S) != 0:
        return f"round {number}, {place.name}: the clean run failed; see {log}"
    if found := difference(contents(place, place.table), contents(place, clean)):
        return f"round {number}, {place.name}: {found}"
    if not place.storage:
        shutil.rmtree(folder / "db" / f"clean{number}")
    return None


def main() -> int:
    """Run the soak test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, required=True, help="folder to work in; must not exist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.02, help="chance of each fault per request")
    given = parser.parse_args()
    report = soak(given.folder, given.minutes, given.rate, given.seed)
    sys.stdout.write(json.dumps(report) + "\n")
    return int(report["problem"] is not None)


if __name__ == "__main__":
    raise SystemExit(main())
