"""Cost of a nightly run: embed a million rows, then run again unchanged, then with one of a hundred files changed.

    python -m benchmarks.incremental --rows 1000000 --folder /tmp/incremental

Makes Parquet files of tiny distinct pictures and runs `isthmus embed` (weight-free encoder) in separate processes.
Reports the seconds of each run as a share of the first, the bytes that an unchanged run reads, and whether the table
mirrors the corpus. Exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import zlib
from pathlib import Path
from typing import Any

import lance
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.harness import Goal, report
from benchmarks.watching import embed_command, watch

_FILES = 100
_REPEATS = 3


def picture(number: int) -> bytes:
    """A PNG of 2 x 2 pixels whose colours encode the number."""
    pixels = number.to_bytes(12, "little")
    body = zlib.compress(b"\0" + pixels[:6] + b"\0" + pixels[6:], 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def write_file(path: Path, first: int, rows: int, generation: int, *, pictures: bool = True) -> None:
    """Write a file of the corpus. Another generation has the same keys but other pictures and captions."""
    numbers = range(first, first + rows)
    shift = generation << 40
    table = {"id": [f"{n:09d}" for n in numbers], "caption": [f"thing {n} of {generation}" for n in numbers]}
    if pictures:
        table["image"] = pa.array([picture(n + shift) for n in numbers], pa.binary())
    pq.write_table(pa.table(table), path, row_group_size=5_000)


def timed(corpus: Path, table: Path) -> tuple[float, dict[str, Any]]:
    """Embed in a separate process. Return its wall seconds and its report."""
    done = watch(embed_command(corpus, table))
    return done.seconds, json.loads(done.stdout)


def bytes_read(corpus: Path, table: Path) -> int:
    """Bytes that an unchanged run reads. It runs in this process, because it starts no other."""
    from jobs.embed import EmbedConfig, run

    process = psutil.Process()
    config = EmbedConfig(corpus=str(corpus), table=str(table), encoder="fake", columns={"key": "id"})
    run(config)  # Imports the modules, so that their files are not counted.
    before = process.io_counters().read_chars  # type: ignore[attr-defined]
    assert run(config).rows_in == 0
    return int(process.io_counters().read_chars - before)  # type: ignore[attr-defined]


def mirrors(corpus: Path, table: Path) -> bool:
    """Whether the table has the ids and captions of the corpus, each once."""
    wanted = pq.read_table(corpus, columns=["id", "caption"]).sort_by("id")
    found = lance.dataset(f"{table}.lance").to_table(columns=["row_id", "caption"]).sort_by("row_id")
    return bool(
        found.num_rows == wanted.num_rows
        and pc.all(pc.equal(found["row_id"], wanted["id"])).as_py()
        and pc.all(pc.equal(found["caption"], wanted["caption"])).as_py()
    )


def measure(folder: Path, rows: int) -> tuple[list[dict[str, Any]], list[Goal]]:
    """Embed a corpus, then several times unchanged, then several times with one file changed. Return rows and goals."""
    corpus, table = folder / "corpus", folder / "db" / "t"
    corpus.mkdir(parents=True)
    each = rows // _FILES
    for n in range(_FILES):
        write_file(corpus / f"{n:03d}.parquet", n * each, each, 0)

    first, done = timed(corpus, table)
    assert done["written"] == each * _FILES
    again = [timed(corpus, table)[0] for _ in range(_REPEATS)]
    read = bytes_read(corpus, table)
    changed = []
    for n in range(_REPEATS):
        write_file(corpus / f"{n:03d}.parquet", n * each, each, 1)
        seconds, done = timed(corpus, table)
        assert (done["written"], done["replaced"]) == (each, each), done
        changed.append(seconds)
    size = sum(path.stat().st_size for path in corpus.iterdir())
    runs = {"first": [first], "unchanged": again, "one file of a hundred changed": changed}
    table_rows = [
        {
            "run": name,
            "rows": each * _FILES,
            "s": round(statistics.median(s), 2),
            "share": round(statistics.median(s) / first, 4),
        }
        for name, s in runs.items()
    ]
    goals = [
        Goal(
            name="unchanged: share of the first run",
            figure=statistics.median(again) / first,
            target=0.02,
            at_least=False,
        ),
        Goal(
            name="changed: share of the first run",
            figure=statistics.median(changed) / first,
            target=0.05,
            at_least=False,
        ),
        Goal(name="unchanged: bytes read, share of the corpus", figure=read / size, target=0.05, at_least=False),
        Goal(name="the table mirrors the corpus", figure=float(mirrors(corpus, table)), target=1.0),
    ]
    return table_rows, goals


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    rows, goals = measure(given.folder, given.rows)
    report(
        "incremental", f"python -m benchmarks.incremental --rows {given.rows} --folder FOLDER", {"Runs": rows}, goals
    )
    return 0 if all(goal.met for goal in goals) else 1


if __name__ == "__main__":
    raise SystemExit(main())
