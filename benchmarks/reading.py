"""Cost of reading pictures from Parquet: the read stage of `isthmus embed`, Parquet alone, and the digest alone.

    python -m benchmarks.reading --folder FOLDER

Measures processor milliseconds per picture in one process, with the files in the page cache. The read stage makes
blocks with identities and gives each picture's bytes to the decoder. Parquet alone reads the same row groups with their
checksums. The digest is the one by which vectors are reused. Contenders take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.harness import report, summary, take_turns
from benchmarks.pictures import write_parquet
from encoders.images import ImageTransform
from pipelines.ingest.identity import picture_digest
from pipelines.ingest.stages.decoding import Decoded, DecodeSettings, decode_block
from pipelines.ingest.stages.reading import ReadSettings, ShardWork, read_blocks
from pipelines.rows.contract import Columns
from pipelines.sources import open_source
from pipelines.store.storage import Storage

_SIZES = {"256 px": 2_000, "640 px": 1_000, "12 MP": 128}
_STAGE, _PARQUET, _DIGEST = "read stage", "Parquet alone", "digest alone"
_SETTINGS = DecodeSettings(transform=ImageTransform(), mode="fast", max_pixels=1)


def read_stage(corpus: Path) -> None:
    """Read a whole corpus by the read stage, up to the decoder."""
    nothing = Decoded(pixels=np.zeros((1, 1, 3), np.uint8), thumbnail=None)
    source = open_source(str(corpus), columns=Columns(key="id"), storage=Storage())
    work = [ShardWork(shard=shard, shard_id=shard.uri) for shard in source.shards()]
    settings = ReadSettings(root=str(corpus), keyed=True, needs=frozenset({"image"}), fetch=True, block_rows=222)
    for block in read_blocks(source, work, settings, Storage()):
        decode_block(block, _SETTINGS, lambda data, picture, settings: nothing)


def parquet(corpus: Path) -> None:
    """Read the row groups of a corpus with their checksums, as the source does."""
    for path in sorted(corpus.glob("*.parquet")):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        for _ in file.iter_batches(batch_size=32, use_threads=False):
            pass


def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Measure each size of pictures: one row each."""
    rows = []
    for size, count in _SIZES.items():
        corpus = write_parquet(folder / size.replace(" ", ""), size, count)
        pictures = [data for path in corpus.glob("*.parquet") for data in pq.read_table(path)["image"].to_pylist()]
        runs: dict[str, Callable[[], object]] = {
            _STAGE: lambda corpus=corpus: read_stage(corpus),
            _PARQUET: lambda corpus=corpus: parquet(corpus),
            _DIGEST: lambda pictures=pictures: [picture_digest(data) for data in pictures],
        }
        turns = {name: (lambda run=run, count=count: _processor_ms(run) / count) for name, run in runs.items()}
        found = summary(take_turns(turns, rounds))
        mean = sum(map(len, pictures)) / count / 1e6
        rows.append(
            {"pictures": size, "MB": f"{mean:.3f}"} | {f"{name}, ms": f"{found[name]['median']:.3f}" for name in runs}
        )
    return rows


def _processor_ms(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return 1e3 * (time.process_time() - started)


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    table = measure(given.folder, given.rounds)
    report("reading", "python -m benchmarks.reading --folder FOLDER", {"A picture": table}, [])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
