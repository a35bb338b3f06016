"""Cost of a commit into a large table, and of planning a re-run.

Measures the seconds, processor seconds and bytes of a commit by the table's number of fragments, and those of a
re-run's plan by the number of claims in the ledger and of shards in the corpus.

    python -m benchmarks.commits --folder /tmp/commits

The sink itself makes the commits, of staged groups of four fragments. Lance does not open the files that a commit
names. So the table's fragments exist only in its manifest, and a million of them take no disk space.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.fragment import FragmentMetadata, write_fragments

from benchmarks.encoded import blocks_of, schema_of, shard_id
from benchmarks.harness import Goal, report
from pipelines.ingest.incremental import remaining, stale_shards
from pipelines.ingest.naming import Fate
from pipelines.ingest.sink.committing import Committer
from pipelines.ingest.sink.staging import StagedGroup
from pipelines.ingest.stages.reading import ShardWork
from pipelines.ledger.claims import Change, Claim
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.rejects import REJECTS_SCHEMA
from pipelines.sources.base import CorpusShard
from pipelines.store.storage import TableRef
from pipelines.tables.lease import Lease
from pipelines.tables.opening import create_dataset, open_dataset

_FRAGMENTS = (0, 1_000, 4_000, 16_000, 64_000)
_CLAIMS = (1_000, 10_000, 100_000, 1_000_000)
_SHARDS = (1_000, 10_000, 100_000)
_ROWS = 16_384
_FRAGMENTS_OF_A_GROUP = 4
_CLAIMS_OF_A_GROUP = 64
_COMMITS = 9
_DIM = 512


class Fabric:
    """Makes metadata of fragments whose files do not exist, each with a different file name."""

    def __init__(self, folder: Path) -> None:
        """Write one fragment and use its metadata as the template."""
        shutil.rmtree(folder, ignore_errors=True)
        schema = schema_of(_DIM)
        ref = TableRef.parse(str(folder / "db" / "shape"))
        create_dataset(ref, schema)
        rows = pa.concat_tables(blocks_of(64, block_rows=64, shard_rows=64, dim=_DIM)).select(schema.names).cast(schema)
        (fragment,) = write_fragments(rows, ref.uri, mode="append")
        self._shape = fragment.to_json()
        self._made = 0

    def make(self, n: int) -> list[str]:
        """`n` new fragments as JSON."""
        out = []
        for _ in range(n):
            self._made += 1
            (file,) = self._shape["files"]
            name = f"{self._made:040x}" + Path(file["path"]).name[40:]
            out.append(json.dumps({**self._shape, "physical_rows": _ROWS, "files": [{**file, "path": name}]}))
        return out


def table_of(folder: Path, fabric: Fabric, fragments: int) -> TableRef:
    """Create a table with this many fragments in one commit."""
    ref = TableRef.parse(str(folder / "db" / f"t{fragments}"))
    dataset = create_dataset(ref, schema_of(_DIM))
    if fragments:
        made = [FragmentMetadata.from_json(text) for text in fabric.make(fragments)]
        lance.LanceDataset.commit(ref.uri, lance.LanceOperation.Append(made), read_version=dataset.version)
    return ref


def group_of(fabric: Fabric, number: int) -> StagedGroup:
    """A staged group. Its blocks have as many ranges as interleaved readers would give."""
    each = _FRAGMENTS_OF_A_GROUP * _ROWS // _CLAIMS_OF_A_GROUP
    claims = [
        Claim(shard=shard_id(n), start=number * each, stop=(number + 1) * each, last=False, written=each, rejected=0)
        for n in range(_CLAIMS_OF_A_GROUP)
    ]
    return StagedGroup(
        fragments=tuple(fabric.make(_FRAGMENTS_OF_A_GROUP)),
        claims=tuple(claims),
        rejects=REJECTS_SCHEMA.empty_table(),
        rows=_FRAGMENTS_OF_A_GROUP * _ROWS,
        blocks=_CLAIMS_OF_A_GROUP,
        seconds={},
        overlong=0,
        reused=0,
        started=time.time(),
    )


def measure_commits(folder: Path, fabric: Fabric, fragments: int) -> dict[str, Any]:
    """Medians over several commits into a table with this many fragments."""
    ref = table_of(folder, fabric, fragments)
    committer = Committer(ref, Ledger.reconcile(ref), Lease.acquire(ref))
    seconds, processor = [], []
    for number in range(_COMMITS):
        group = group_of(fabric, number)
        started, used = time.perf_counter(), time.process_time()
        committer.commit([group])
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    newest = max(Path(ref.uri, "_versions").glob("*.manifest"), key=lambda path: path.stat().st_mtime)
    there = len(open_dataset(ref).get_fragments())
    return {
        "fragments": fragments,
        "commit, ms": round(1e3 * statistics.median(seconds), 1),
        "processor, ms": round(1e3 * statistics.median(processor), 1),
        "manifest, bytes": newest.stat().st_size,
        "manifest, bytes a fragment": round(newest.stat().st_size / there, 1),
    }


def measure_ledger(folder: Path, claims: int) -> dict[str, Any]:
    """Measure what a run reads of the ledger before it can plan."""
    ref = TableRef.parse(str(folder / "db" / f"l{claims}"))
    create_dataset(ref, schema_of(_DIM))
    ledger = Ledger.reconcile(ref)
    each = 1_000
    made = [
        Claim(
            shard=shard_id(n // each), start=2 * (n % each), stop=2 * (n % each) + 1, last=False, written=1, rejected=0
        )
        for n in range(claims)
    ]
    ledger.count_in(Change(claims=tuple(made)), 1)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        found = Ledger.reconcile(ref)
        seconds.append(time.perf_counter() - started)
    assert len(found.coverage) == -(-claims // each)
    size = sum(path.stat().st_size for path in Path(ref.sibling("ledger").uri, "data").iterdir())
    return {
        "claims": claims,
        "reading the ledger, s": round(statistics.median(seconds), 3),
        "µs a claim": round(1e6 * statistics.median(seconds) / claims, 2),
        "ledger, bytes a claim": round(size / claims, 1),
    }


def measure_plan(shards: int) -> dict[str, Any]:
    """Measure the plan of a re-run, which compares each shard of the corpus with its settled records."""
    tracemalloc.start()
    work = [
        ShardWork(
            shard=CorpusShard(uri=f"/corpus/{n:06d}.parquet", version="1", rows=8_192, size_bytes=1),
            shard_id=shard_id(n),
        )
        for n in range(shards)
    ]
    coverage = Ledger(TableRef.parse("/nowhere/t")).coverage
    for item in work:
        coverage.add(Claim(shard=item.shard_id, start=0, stop=8_192, last=True, written=8_192, rejected=0))
    ids = frozenset(item.shard_id for item in work)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    started = time.perf_counter()
    assert not remaining(work, coverage)
    assert not any(stale_shards(coverage, ids, {}, lambda identity, *, is_here: Fate.KEPT))
    seconds = time.perf_counter() - started
    return {
        "shards": shards,
        "plan, s": round(seconds, 4),
        "µs a shard": round(1e6 * seconds / shards, 2),
        "bytes a shard": round(held / shards),
    }


def fixed_and_growing(rows: Sequence[dict[str, Any]], over: str, of: str) -> tuple[float, float]:
    """A line through the first and the last row: the value of `of` at zero, and its growth per unit of `over`."""
    first, last = rows[0], rows[-1]
    return first[of], (last[of] - first[of]) / (last[over] - first[over])


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    fabric = Fabric(given.folder)
    commits = [measure_commits(given.folder, fabric, n) for n in _FRAGMENTS]
    ledger = [measure_ledger(given.folder, n) for n in _CLAIMS]
    plans = [measure_plan(n) for n in _SHARDS]
    fixed, growing = fixed_and_growing(commits, "fragments", "commit, ms")
    goals = [
        Goal(
            name="a commit into 4,000 fragments, by one into none",
            figure=commits[2]["commit, ms"] / fixed,
            target=10.0,
            at_least=False,
            note=f"{1e3 * growing:.2f} µs more for each fragment",
        )
    ]
    tables = {"Commits": commits, "The ledger": ledger, "The plan": plans}
    report("commits", "python -m benchmarks.commits --folder FOLDER", tables, goals)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
