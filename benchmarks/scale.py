"""Time per row and memory of `isthmus embed`, at 10,000, 100,000, 1,000,000 and 10,000,000 rows.

    python -m benchmarks.scale --folder /tmp/scale
    python -m benchmarks.scale --folder /tmp/scale --ten-million

`isthmus embed` runs on Ray, with the weight-free encoder, over Parquet files of tiny distinct pictures. Then it runs
again on the finished table. Peaks are of the private memory (USS) of the driver, of the largest worker and of all
workers, polled each second. The driver's processor time per staged fragment is compared between the first and the last
tenth of the run: it must not grow with the finished work. `--ten-million` does the same with captions only, at one and
at ten million rows, and takes some twenty minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Goal, report
from benchmarks.incremental import write_file
from benchmarks.watching import Watched, embed_command, watch

_ROWS = (10_000, 100_000, 1_000_000)
_TEXT_ROWS = (1_000_000, 10_000_000)
_ROWS_OF_A_FILE = 10_000  # The same at all sizes, because the memory of a read task depends on row groups.
_REPEATS = 3
_MOST_GROWTH = 1.1
_MIB = 1 << 20


def measure(folder: Path, rows: int, *, pictures: bool) -> dict[str, Any]:
    """Embed a corpus of this many rows, and run again on the finished table. Return a row of the report."""
    shutil.rmtree(folder, ignore_errors=True)
    corpus, table = folder / "corpus", folder / "db" / "t"
    corpus.mkdir(parents=True)
    for start in range(0, rows, _ROWS_OF_A_FILE):
        write_file(corpus / f"{start:08d}.parquet", start, _ROWS_OF_A_FILE, 0, pictures=pictures)
    data = Path(f"{table}.lance") / "data"
    first = watch(embed_command(corpus, table, "--engine", "ray"), lambda: _files_in(data))
    done = json.loads(first.stdout)
    if done["written"] != rows:
        raise RuntimeError(f"{done['written']} rows of {rows} are in the table")
    again = [watch(embed_command(corpus, table)) for _ in range(_REPEATS)]
    ledger = Path(f"{table}_ledger.lance")
    result = _row(rows, first, again, done) | {"ledger, bytes": _bytes_in(ledger)}
    shutil.rmtree(folder)
    return result


def _row(rows: int, first: Watched, again: Sequence[Watched], done: dict[str, Any]) -> dict[str, Any]:
    second = statistics.median(one.seconds for one in again)
    return {
        "rows": rows,
        "shards": done["shards"],
        "commits": done["commits"],
        "first run, s": round(first.seconds, 1),
        "µs a row": round(1e6 * first.seconds / rows, 1),
        "again, s": round(second, 2),
        "again, share": round(second / first.seconds, 4),
        "driver, MiB": round(first.driver_bytes / _MIB),
        "driver, MiB, first tenth": _mib(first.driver_bytes_between(0.02, 0.1)),
        "driver, MiB, last tenth": _mib(first.driver_bytes_between(0.9, 0.98)),
        "largest worker, MiB": round(first.worker_bytes / _MIB),
        "which": first.worker,
        "all workers, MiB": round(first.workers_bytes / _MIB),
        "driver again, MiB": round(max(one.driver_bytes for one in again) / _MIB),
        "driver, processor s": round(first.samples[-1].processor_s, 2),
        "driver, ms a fragment, first tenth": _ms(first.processor_s_between(0.0, 0.1)),
        "driver, ms a fragment, last tenth": _ms(first.processor_s_between(0.9, 1.0)),
        "clock, ms a fragment, first tenth": _ms(first.seconds_between(0.0, 0.1)),
        "clock, ms a fragment, last tenth": _ms(first.seconds_between(0.9, 1.0)),
        "driver, ms a fragment, all": _ms(first.processor_s_between(0.0, 1.0)),
        "commit, s": done["stage_seconds"].get("commit", 0.0),
    }


def _ms(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(1e3 * seconds, 1)


def _mib(size: float) -> int | None:
    return None if math.isnan(size) else round(size / _MIB)


def _files_in(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# Why goals were missed.
_WHY = {
    "largest worker, MiB": (
        "a worker reaches its level some 100 s after its start and stays there: polled each five seconds over "
        "600,000 rows, the larger encode actor had 227 MiB after 97 s and 210 to 230 until the end; the run of 100,000 "
        "rows ends after 47 s"
    ),
    "driver, MiB": (
        "Ray Data keeps statistics of each block until the run ends: polled each ten seconds over 4,000,000 "
        "captions, which are 3,906 blocks, the driver grew from 161 to 179 MiB, by 4.5 bytes a row; that is half of "
        "this growth; the cause of the other half was not found"
    ),
    "driver's work": (
        "the driver works the same in each second, however much is done in it: polled each ten seconds over 4,000,000 "
        "captions it took .12 to .20 of a core, mostly .16, from the first fragment to the last; only the number of "
        "fragments per second varied"
    ),
}


def goals_of(small: dict[str, Any], large: dict[str, Any]) -> list[Goal]:
    """The goals: figures that must not grow when the number of rows grows tenfold."""
    scale = f"{large['rows']:,} rows by {small['rows']:,}"
    goals = []
    for name in ("driver, MiB", "largest worker, MiB"):
        figure = large[name] / small[name]
        note = _WHY.get(name, "") if figure > _MOST_GROWTH else ""
        goals.append(Goal(name=f"{name}: {scale}", figure=figure, target=_MOST_GROWTH, at_least=False, note=note))
    early, late = (large[f"driver, ms a fragment, {when} tenth"] for when in ("first", "last"))
    return [
        *goals,
        Goal(
            name=f"a re-run of {large['rows']:,} rows: share of the first",
            figure=large["again, share"],
            target=0.02,
            at_least=False,
        ),
        Goal(
            name="driver's work for a fragment: last tenth by first",
            figure=late / early,
            target=_MOST_GROWTH,
            at_least=False,
            note=_WHY["driver's work"] if late / early > _MOST_GROWTH else "",
        ),
    ]


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--ten-million", action="store_true", help="measure captions only, at 1,000,000 and 10,000,000 rows"
    )
    given = parser.parse_args()
    sizes = _TEXT_ROWS if given.ten_million else _ROWS
    rows = [measure(given.folder / str(n), n, pictures=not given.ten_million) for n in sizes]
    name = "scale_ten_million" if given.ten_million else "scale"
    command = "python -m benchmarks.scale --folder FOLDER" + (" --ten-million" if given.ten_million else "")
    goals = goals_of(rows[-2], rows[-1])
    report(name, command, {"Runs": rows}, goals)
    return 0 if all(goal.met for goal in goals) else 1


if __name__ == "__main__":
    raise SystemExit(main())
