"""What a nightly run costs: a million rows embedded, then again unchanged, then with one file in a hundred changed.

    python benchmarks/incremental.py --rows 1000000 --folder /tmp/incremental

Makes Parquet files of tiny distinct pictures, runs `isthmus embed` (weight-free encoder) in processes of their own, and
prints one JSON object: seconds of each run, each as a share of the first, the bytes that an unchanged run reads, and
whether the table mirrors the corpus. Exits 1 where a share is above `--most-unchanged` or `--most-changed`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import lance
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_FILES = 100
_REPEATS = 3
_ENCODER = "fake"


def picture(number: int) -> bytes:
    """A PNG of 2 x 2 pixels whose colours are the number."""
    pixels = number.to_bytes(12, "little")
    body = zlib.compress(b"\0" + pixels[:6] + b"\0" + pixels[6:], 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def write_file(path: Path, first: int, rows: int, generation: int) -> None:
    """A file of the corpus; another generation has the same keys, and other pictures and captions."""
    numbers = range(first, first + rows)
    shift = generation << 40
    table = {
        "id": [f"{n:09d}" for n in numbers],
        "image": pa.array([picture(n + shift) for n in numbers], pa.binary()),
        "caption": [f"thing {n} of {generation}" for n in numbers],
    }
    pq.write_table(pa.table(table), path, row_group_size=5_000)


def command(corpus: Path, table: Path) -> list[str]:
    """The job."""
    return [sys.executable, "-m", "jobs.cli", "embed", str(corpus), "--table", str(table), "--encoder", _ENCODER,
            "--columns.key", "id", "--json"]  # fmt: skip


def timed(corpus: Path, table: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of a whole process, and its report."""
    started = time.perf_counter()
    done = subprocess.run(
        command(corpus, table), capture_output=True, text=True, env=os.environ | {"RAY_ADDRESS": "local"}, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    return seconds, json.loads(done.stdout)


def bytes_read(corpus: Path, table: Path) -> int:
    """Bytes that an unchanged run reads, in this process: it starts no other."""
    from jobs.embed import EmbedConfig, run

    process = psutil.Process()
    config = EmbedConfig(corpus=str(corpus), table=str(table), encoder=_ENCODER, columns={"key": "id"})
    run(config)  # The modules' own files.
    before = process.io_counters().read_chars  # type: ignore[attr-defined]
    assert run(config).rows_in == 0
    return int(process.io_counters().read_chars - before)  # type: ignore[attr-defined]


def mirrors(corpus: Path, table: Path) -> bool:
    """Whether ids and captions of the table are those of the corpus, each once."""
    wanted = pq.read_table(corpus, columns=["id", "caption"]).sort_by("id")
    found = lance.dataset(f"{table}.lance").to_table(columns=["row_id", "caption"]).sort_by("row_id")
    return bool(
        found.num_rows == wanted.num_rows
        and pc.all(pc.equal(found["row_id"], wanted["id"])).as_py()
        and pc.all(pc.equal(found["caption"], wanted["caption"])).as_py()
    )


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--most-unchanged", type=float, default=0.02, help="share of the first run's time")
    parser.add_argument("--most-changed", type=float, default=0.05, help="the same, one file of a hundred changed")
    given = parser.parse_args()
    corpus, table = given.folder / "corpus", given.folder / "db" / "t"
    corpus.mkdir(parents=True)
    each = given.rows // _FILES
    for n in range(_FILES):
        write_file(corpus / f"{n:03d}.parquet", n * each, each, 0)

    first, report = timed(corpus, table)
    assert report["written"] == each * _FILES
    again = [timed(corpus, table)[0] for _ in range(_REPEATS)]
    read = bytes_read(corpus, table)
    changed = []
    for n in range(_REPEATS):
        write_file(corpus / f"{n:03d}.parquet", n * each, each, 1)
        seconds, report = timed(corpus, table)
        assert (report["written"], report["replaced"]) == (each, each), report
        changed.append(seconds)
    shares = {name: statistics.median(runs) / first for name, runs in (("unchanged", again), ("changed", changed))}
    size = sum(path.stat().st_size for path in corpus.iterdir())
    is_same = mirrors(corpus, table)
    result = {
        "rows": each * _FILES,
        "first_s": round(first, 1),
        "unchanged_s": [round(s, 2) for s in again],
        "changed_s": [round(s, 2) for s in changed],
        "unchanged_share": round(shares["unchanged"], 4),
        "changed_share": round(shares["changed"], 4),
        "bytes_read_unchanged": read,
        "corpus_bytes": size,
        "table_mirrors_corpus": is_same,
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    held = shares["unchanged"] <= given.most_unchanged and shares["changed"] <= given.most_changed
    return 0 if held and is_same else 1


if __name__ == "__main__":
    raise SystemExit(main())
