"""Cost of the sink compared with a bare write.

Measures rows and bytes per second of staging and committing encoded blocks exactly once, against `lance.write_dataset`
of the same rows in one process.

    python -m benchmarks.write --folder /tmp/write

Contenders take turns, each on its own table: `write_dataset` in one call (with files of its default size, and with
files as small as the sink's); the sink in one process, group after group; the sink in one process for each core, as in
a job on one machine, each with its blocks in memory; and the sink on Ray, as in a job on a cluster, from blocks in the
object store. All processes have started and have staged something before the clock starts. *Steady* is the rate between
the first commit and the last. *Whole* includes the lease, the start and the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import ray
from lance.fragment import write_fragments

from benchmarks.encoded import blocks_of, schema_of
from benchmarks.harness import Figures, Goal, ratio, report, take_turns
from pipelines.cluster import session
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.engines.streaming import StreamingSink
from pipelines.ingest.sink.committing import Committer
from pipelines.ingest.sink.queueing import FRAGMENT_ROWS, CommitQueue, SinkLimits
from pipelines.ingest.sink.staging import NO_FILES, StagedGroup, stage_envelopes
from pipelines.ingest.stages.reuse import index_digests
from pipelines.ledger.ledger import Ledger
from pipelines.rows.blocks import unwrap, wrap
from pipelines.store.storage import TableRef
from pipelines.tables.lease import Lease
from pipelines.tables.opening import create_dataset

_DIM = 512
_BLOCK_ROWS = 218  # Rows whose pixels at 224 x 224 fill 32 MiB.
_SHARD_ROWS = 8_192
_ALONE, _ALONE_SMALL = "write_dataset", "write_dataset, files of 16,384 rows"
_PROCESS, _CORES, _RAY = "sink, one process", "sink, a process a core", "sink on Ray"
_WHERE, _PROCESSOR = ("in one process", "on Ray"), ", processor"
_WANTED = 0.9
_ALL_OF_IT = "all of stage_envelopes, afterwards"
_envelopes: list[pa.Table] = []  # filled in each process of the pool


class Bench:
    """The data and the contenders. A contender returns rows per second and adds its other figures to `found`."""

    def __init__(self, folder: Path, rows: int) -> None:
        self._folder = folder
        self._schema = schema_of(_DIM)
        blocks = blocks_of(rows, block_rows=_BLOCK_ROWS, shard_rows=_SHARD_ROWS, dim=_DIM)
        self._rows = rows
        self._bare = pa.concat_tables([block.select(self._schema.names) for block in blocks]).cast(self._schema)
        self._envelopes = [wrap(block) for block in blocks]
        self._refs: list[Any] = []
        self._pool: ProcessPoolExecutor | None = None
        self._spent: list[tuple[float, float]] = []
        self._driver_s: list[float] = []
        self.found: dict[str, list[dict[str, float]]] = {}

    @property
    def bytes(self) -> int:
        """Size of the table's columns in memory, in bytes."""
        return int(self._bare.nbytes)

    def write_dataset(self, name: str, rows_of_a_file: int | None = None) -> float:
        """The bare write: one call of `lance.write_dataset`."""
        table = self._fresh(name)
        limit = {} if rows_of_a_file is None else {"max_rows_per_file": rows_of_a_file}
        started = time.perf_counter()
        lance.write_dataset(self._bare, table.uri, **limit)
        return self._measured(name, table, time.perf_counter() - started, [])

    def one_process(self) -> float:
        """Stage and commit in this process, one group after the other."""
        table = self._fresh(_PROCESS)
        started = time.perf_counter()
        with _Sink(table, self._schema) as sink:
            each = sink.queue.group_rows // _BLOCK_ROWS + 1
            for start in range(0, len(self._envelopes), each):
                envelopes = self._envelopes[start : start + each]
                sink.queue.add(stage_envelopes(table, self._schema, NO_FILES, *envelopes))
                sink.queue.commit_if_due()
            sink.queue.commit()
        seconds = time.perf_counter() - started
        self._spent.append((1e3 * seconds / sink.groups, 1e3 * sink.commit_s / sink.groups))
        return self._measured(_PROCESS, table, seconds, sink.commits)

    def in_processes(self) -> float:
        """Stage groups in a pool of processes, and commit them in this one."""
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(os.cpu_count(), spawn, initializer=_fill, initargs=(self._rows,))
        table = self._fresh(_CORES)
        started = time.perf_counter()
        with _Sink(table, self._schema) as sink:
            each = sink.queue.group_rows // _BLOCK_ROWS + 1
            parts = [slice(start, start + each) for start in range(0, len(self._envelopes), each)]
            for done in as_completed([self._pool.submit(_stage, table, self._schema, part) for part in parts]):
                sink.queue.add(done.result())
                sink.queue.commit_if_due()
            sink.queue.commit()
        return self._measured(_CORES, table, time.perf_counter() - started, sink.commits)

    def on_ray(self) -> float:
        """Stage groups in Ray tasks, and commit them in the driver."""
        if not self._refs:
            self._refs = [ray.put(envelope) for envelope in self._envelopes]
        table = self._fresh(_RAY)
        started, driver = time.perf_counter(), time.process_time()
        with _Sink(table, self._schema) as sink:
            streaming = StreamingSink(sink.queue, table, self._schema)
            for ref in self._refs:
                streaming.add([ref], 1)
            streaming.finish()
        seconds = time.perf_counter() - started
        self._driver_s.append((time.process_time() - driver) / sink.groups)
        return self._measured(_RAY, table, seconds, sink.commits)

    def indexing_s(self) -> float:
        """Seconds to index the digests of the last table written on Ray, which happens once a run."""
        table = TableRef.parse(str(self._folder / "db" / "t"))
        started = time.perf_counter()
        index_digests(table)
        return time.perf_counter() - started

    def stages(self) -> list[dict[str, Any]]:
        """Times of the steps of staging a group, here and in a Ray task, on the second run with warm caches."""
        table = self._fresh("steps")
        create_dataset(table, self._schema)
        group = slice(0, _limits().rows_of_a_group(0) // _BLOCK_ROWS + 1)
        on_ray = ray.remote(steps_of_staging)
        for _ in range(2):
            here = steps_of_staging(table, self._schema, *self._envelopes[group])
            there = ray.get(on_ray.remote(table, self._schema, *self._refs[group]))
        return [
            {"step, ms for 16,384 rows": name}
            | {
                where + what: round(times[name][i], 1)
                for where, times in zip(_WHERE, (here, there), strict=True)
                for i, what in enumerate(("", _PROCESSOR))
            }
            for name in here
        ]

    def spent_alone(self) -> tuple[float, float]:
        """Milliseconds of one process for a group, and the part spent in commits; medians over the rounds."""
        return statistics.median(all_ for all_, _ in self._spent), statistics.median(of for _, of in self._spent)

    def driver_ms(self) -> float:
        """Processor milliseconds of the driver for a group on Ray; median over the rounds."""
        return 1e3 * statistics.median(self._driver_s)

    def close(self) -> None:
        """End the processes and delete the tables."""
        if self._pool is not None:
            self._pool.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fresh(self, name: str) -> TableRef:
        shutil.rmtree(self._folder / "db", ignore_errors=True)
        return TableRef.parse(str(self._folder / "db" / "t"))

    def _measured(self, name: str, table: TableRef, seconds: float, commits: Sequence[tuple[float, int]]) -> float:
        dataset = lance.dataset(table.uri)
        if (n := dataset.count_rows()) != self._rows:
            raise RuntimeError(f"{name}: {n} rows of {self._rows}")
        found = {
            "rows/s": self._rows / seconds,
            "MB/s": self.bytes / seconds / 1e6,
            "versions": float(len(dataset.versions())),
            "data files": float(sum(1 for _ in Path(table.uri, "data").iterdir())),
            "files in all": float(sum(1 for p in self._folder.rglob("*") if p.is_file())),
        }
        if len(commits) > 1:
            (first, rows_first), (last, rows_last) = commits[0], commits[-1]
            found["steady rows/s"] = (rows_last - rows_first) / (last - first)
        self.found.setdefault(name, []).append(found)
        return self._rows / seconds


def _fill(rows: int) -> None:
    """Make the envelopes in a process of the pool."""
    blocks = blocks_of(rows, block_rows=_BLOCK_ROWS, shard_rows=_SHARD_ROWS, dim=_DIM)
    _envelopes[:] = [wrap(block) for block in blocks]


def _stage(table: TableRef, schema: pa.Schema, part: slice) -> StagedGroup:
    return stage_envelopes(table, schema, NO_FILES, *_envelopes[part])


def steps_of_staging(table: TableRef, schema: pa.Schema, *envelopes: pa.Table) -> dict[str, tuple[float, float]]:
    """Time of each step of staging a group, by the same calls as `stage_envelopes`, and of all steps.

    Returns:
        Step → (wall milliseconds, processor milliseconds of all threads).
    """
    times = [(time.perf_counter(), time.process_time())]
    blocks = [block for envelope in envelopes for block in unwrap(envelope)]
    times.append((time.perf_counter(), time.process_time()))
    rows = pa.concat_tables([block.select(schema.names) for block in blocks]).cast(schema)
    times.append((time.perf_counter(), time.process_time()))
    write_fragments(rows, table.uri, mode="append")
    times.append((time.perf_counter(), time.process_time()))
    stage_envelopes(table, schema, NO_FILES, *envelopes)
    times.append((time.perf_counter(), time.process_time()))
    names = ("opening envelopes", "putting blocks together", "write_fragments", _ALL_OF_IT)
    pairs = zip(names, times, times[1:], strict=False)
    return {name: (1e3 * (b[0] - a[0]), 1e3 * (b[1] - a[1])) for name, a, b in pairs}


class _Sink:
    """An empty table with a committer under its lease. Its commits are recorded as (seconds, rows so far)."""

    def __init__(self, table: TableRef, schema: pa.Schema) -> None:
        create_dataset(table, schema)
        self._lease = Lease.acquire(table)
        self._committer = Committer(table, Ledger.reconcile(table), self._lease)
        self.commits: list[tuple[float, int]] = []
        self.queue = CommitQueue(_Noting(self._committer, self.commits), _limits())

    @property
    def commit_s(self) -> float:
        """Seconds that the committer spent in commits."""
        return self._committer.done.seconds.get("commit", 0.0)

    @property
    def groups(self) -> float:
        """Number of groups of 16,384 rows so far."""
        return self.queue.rows / FRAGMENT_ROWS

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._lease.release()


class _Noting:
    """A committer that records when its commits landed."""

    def __init__(self, committer: Committer, commits: list[tuple[float, int]]) -> None:
        self._committer = committer
        self._commits = commits

    def commit(self, groups: Sequence[Any]) -> int:
        version = self._committer.commit(groups)
        self._commits.append((time.perf_counter(), self._committer.done.written))
        return version


def _limits() -> SinkLimits:
    return SinkLimits(block_rows=_BLOCK_ROWS, commit_interval_s=EmbedSettings.commit_interval_s)


def rows_of_report(bench: Bench) -> list[dict[str, Any]]:
    """One row for each contender, with medians over the rounds."""
    out = []
    for name, found in bench.found.items():
        medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
        steady = medians.get("steady rows/s")
        out.append(
            {
                "contender": name,
                "rows/s, whole": round(medians["rows/s"]),
                "MB/s, whole": round(medians["MB/s"]),
                "rows/s, steady": round(steady) if steady else "",
                "versions": int(medians["versions"]),
                "data files": int(medians["data files"]),
                "files in all": int(medians["files in all"]),
            }
        )
    return out


def goals_of(bench: Bench, figures: Figures, stages: Sequence[dict[str, Any]]) -> list[Goal]:
    """The goals: the sink against the bare write, whole and steady."""
    goals = []
    why = _why(bench, figures, stages)
    for name in (_PROCESS, _CORES, _RAY):
        counted = bench.found[name][-len(figures[name]) :]
        steady = {name: [found["steady rows/s"] for found in counted], _ALONE: figures[_ALONE]}
        for part, among in (("whole", figures), ("steady", steady)):
            share = ratio(among, name, _ALONE)
            note = why[name] if share < _WANTED else ""
            goals.append(Goal(name=f"{name}, {part}: share of write_dataset", figure=share, target=_WANTED, note=note))
    return goals


def _why(bench: Bench, figures: Figures, stages: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Notes on where each contender spends its time, in milliseconds for 16,384 rows."""
    alone = 1e3 * FRAGMENT_ROWS / statistics.median(figures[_ALONE])
    small = f"files of 16,384 rows alone bring write_dataset to {ratio(figures, _ALONE_SMALL, _ALONE):.2f}"
    here, there = ({row["step, ms for 16,384 rows"]: row[where] for row in stages} for where in _WHERE)
    whole, commits = bench.spent_alone()
    on_ray = 1e3 * FRAGMENT_ROWS / statistics.median(figures[_RAY])
    of_cores = {row["step, ms for 16,384 rows"]: row[_WHERE[1] + _PROCESSOR] for row in stages}[_ALL_OF_IT]
    return {
        _PROCESS: (
            f"write_dataset takes {alone:.0f} ms for 16,384 rows; here {here['write_fragments']:.0f} of {whole:.0f} "
            f"are Lance's write of a fragment, {commits:.0f} commits, during which nothing else runs; {small}; no job "
            "runs like this"
        ),
        _CORES: small,
        _RAY: (
            f"write_dataset takes {alone:.0f} ms for 16,384 rows; here {on_ray:.0f} on {os.cpu_count()} cores: "
            f"a staging task takes {there[_ALL_OF_IT]:.0f}, in which its processor works {of_cores:.0f}, "
            f"and that of the driver {bench.driver_ms():.0f} a group; {small}"
        ),
    }


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=327_680)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    bench = Bench(given.folder, given.rows)
    session.ensure_ray()
    contenders: dict[str, Callable[[], float]] = {
        _ALONE: lambda: bench.write_dataset(_ALONE),
        _ALONE_SMALL: lambda: bench.write_dataset(_ALONE_SMALL, 16_384),
        _PROCESS: bench.one_process,
        _CORES: bench.in_processes,
        _RAY: bench.on_ray,
    }
    figures = take_turns(contenders, given.rounds, say=lambda line: sys.stderr.write(line + "\n"))
    bench.on_ray()
    after = [{"step": "digests indexed, once a run", "s": round(bench.indexing_s(), 2)}]
    stages = bench.stages()
    goals = goals_of(bench, figures, stages)
    tables = {"Writing": rows_of_report(bench), "Where staging spends": stages, "After the last commit": after}
    report("write", f"python -m benchmarks.write --rounds {given.rounds} --folder FOLDER", tables, goals)
    bench.close()
    return 0 if all(goal.met for goal in goals) else 1


if __name__ == "__main__":
    raise SystemExit(main())
