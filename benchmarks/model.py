"""A model of a billion rows on 64 GPUs, computed from measurements on this machine.

It shows where the driver, the commits, the metadata and the index would reach their limits.

    python -m benchmarks.model --folder /tmp/model
    python -m benchmarks.model

Reads `benchmarks/results/commits.json` (run that bench first). Measures how much a core decodes and indexes and how
much the driver works for a block. Applies the pipeline's own rules for the sizes of shards, blocks, fragments and
commits to pictures of 50 kB in Parquet files. The rate of a GPU is taken from clip-retrieval's published figures (8
A100, S3 to S3: 7,000 pictures per second with ViT-B/32, 2,500 with ViT-L/14); no GPU was measured. Without `--folder`,
the bench measures nothing and uses the last measurements.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.commits import fixed_and_growing
from benchmarks.encoded import blocks_of, schema_of
from benchmarks.harness import RESULTS, report
from benchmarks.incremental import write_file
from benchmarks.watching import embed_command, watch
from encoders.images.prepare import prepare
from encoders.images.transform import ImageTransform
from pipelines.ingest.planning import block_rows
from pipelines.ingest.sink.queueing import COMMIT_ROWS, FRAGMENT_ROWS, SinkLimits
from pipelines.rows.contract import IMAGE_VECTOR
from pipelines.search.indexing.distributed import build_segment
from pipelines.search.indexing.parameters import plan_index
from pipelines.sources.row_groups import MAX_SHARD_BYTES, MAX_SHARD_ROWS
from pipelines.store.storage import TableRef

_ROWS = 1_000_000_000
_GPUS = 64
_PUBLISHED = {"ViT-B/32": (7_000 / 8, 512), "ViT-L/14": (2_500 / 8, 768)}
_PICTURE_BYTES = 50_000
_PART_BYTES = 5 << 20
_REQUESTS_OF_A_COMMIT = 12
_INTERVAL_S = 60.0
_PIXEL_BYTES = 224 * 224 * 3
_TRANSFORM = ImageTransform(kind="shortest_edge", size=(224, 224), crop=(224, 224), resample="bicubic")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Costs measured on this machine.

    Attributes:
        commit_ms: milliseconds of a commit into an empty table.
        fragment_us: microseconds that each fragment of the table adds to a commit.
        manifest_bytes: bytes of a fragment in the manifest.
        claim_us: microseconds to read a claim from the ledger.
        claim_bytes: bytes of a claim in the ledger.
        shard_us: microseconds to plan a shard.
        shard_bytes: bytes of the driver's memory for a settled shard.
        block_ms: milliseconds of the driver's processor for a block, all stages together.
        decoded: pictures of 640 x 480 that a core decodes per second.
        stacked: decoded pictures that an encode actor's core puts into batches per second.
        indexed: number of partitions → vectors of 512 dimensions that a core indexes per second.
    """

    commit_ms: float
    fragment_us: float
    manifest_bytes: float
    claim_us: float
    claim_bytes: float
    shard_us: float
    shard_bytes: float
    block_ms: float
    decoded: float
    stacked: float
    indexed: dict[int, float]


def read_results() -> dict[str, float]:
    """The results of `benchmarks.commits`.

    Raises:
        FileNotFoundError: that bench was not run.
    """
    commits = json.loads((RESULTS / "commits.json").read_text())["tables"]
    fixed, growing = fixed_and_growing(commits["Commits"], "fragments", "commit, ms")
    return {
        "commit_ms": fixed,
        "fragment_us": 1e3 * growing,
        "manifest_bytes": commits["Commits"][-1]["manifest, bytes a fragment"],
        "claim_us": commits["The ledger"][-1]["µs a claim"],
        "claim_bytes": commits["The ledger"][-1]["ledger, bytes a claim"],
        "shard_us": commits["The plan"][-1]["µs a shard"],
        "shard_bytes": commits["The plan"][-1]["bytes a shard"],
    }


def driver_ms_of_a_block(folder: Path, rows: int = 40_000) -> float:
    """Milliseconds of the driver's processor for a block: the difference between many blocks of captions and few."""
    shutil.rmtree(folder, ignore_errors=True)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for n in range(4):
        write_file(corpus / f"{n}.parquet", n * rows // 4, rows // 4, 0, pictures=False)
    many, few = 16, 160
    used = {}
    for size in (many, few):
        done = watch(embed_command(corpus, folder / "db" / f"t{size}", "--engine", "ray", "--block-rows", str(size)))
        used[size] = done.samples[-1].processor_s
    return 1e3 * (used[many] - used[few]) / (rows / many - rows / few)


def decode_rate(pictures: int = 300) -> float:
    """Noisy JPEGs of 640 x 480 that one core turns into 224 x 224 pixels, per second."""
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)) for _ in range(8)]
    files = []
    for one in small:
        stream = io.BytesIO()
        one.resize((640, 480), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    started = time.process_time()
    for i in range(pictures):
        prepare(files[i % len(files)], _TRANSFORM)
    return pictures / (time.process_time() - started)


def stack_rate(batches: int = 100, batch: int = 64) -> float:
    """Pictures of 224 x 224, uint8, that one core puts into a batch, per second."""
    pixels = [np.random.default_rng(i).integers(0, 256, (224, 224, 3), np.uint8) for i in range(batch)]
    started = time.process_time()
    for _ in range(batches):
        np.stack(pixels)
    return batches * batch / (time.process_time() - started)


def index_rates(folder: Path, rows: int, partitions: tuple[int, ...]) -> dict[int, float]:
    """Vectors that a worker indexes per second of processor time: number of partitions → rate."""
    shutil.rmtree(folder, ignore_errors=True)
    table, schema = TableRef.parse(str(folder / "db" / "t")), schema_of(512)
    blocks = blocks_of(rows, block_rows=8_192, shard_rows=8_192, dim=512)
    lance.write_dataset(pa.concat_tables([b.select(schema.names) for b in blocks]).cast(schema), table.uri)
    dataset = lance.dataset(table.uri)
    from lance.lance import indices as native

    rotation = native.build_rq_model(512, 5)
    rates = {}
    for n in partitions:
        vectors = dataset.take(np.arange(n).tolist(), columns=[IMAGE_VECTOR])[IMAGE_VECTOR].combine_chunks()
        fragments = [fragment.fragment_id for fragment in dataset.get_fragments()]
        started = time.process_time()
        build_segment(table, int(dataset.version), IMAGE_VECTOR, n, fragments, vectors, rotation)
        rates[n] = rows / (time.process_time() - started)
    return rates


def commits_of(limits: SinkLimits, rows_per_s: float) -> list[tuple[int, int]]:
    """Each commit of the run as (rows, fragments of the table after it)."""
    done = fragments = 0
    out = []
    while done < _ROWS:
        due = min(limits.rows_of_a_commit(done), max(COMMIT_ROWS, int(rows_per_s * _INTERVAL_S)), _ROWS - done)
        fragments += -(-due // limits.rows_of_a_group(done))
        done += due
        out.append((due, fragments))
    return out


def computed(m: Measured, rate: float, dim: int, limits: SinkLimits) -> dict[str, str]:
    """The run of a billion rows, and the cost of each of its parts."""
    rows_per_s = rate * _GPUS
    hours = _ROWS / rows_per_s / 3600
    commits = commits_of(limits, rows_per_s)
    fragments = commits[-1][1]
    rows_of_a_block = block_rows(_PIXEL_BYTES, _GPUS)
    blocks = _ROWS / rows_of_a_block
    blocks_of_a_group = limits.rows_of_a_group(_ROWS) / rows_of_a_block
    commit_s = sum(m.commit_ms / 1e3 + after * m.fragment_us / 1e6 for _, after in commits)
    manifests = sum(after * m.manifest_bytes for _, after in commits)
    row_bytes = dim * 4 + 300
    puts = _ROWS * row_bytes / _PART_BYTES + 2 * fragments + _REQUESTS_OF_A_COMMIT * len(commits)
    shards = _ROWS // min(MAX_SHARD_ROWS, MAX_SHARD_BYTES // _PICTURE_BYTES)
    claims = max(blocks_of_a_group * fragments, shards)
    return {
        "GPU, rows/s (published)": f"{rate:,.0f}",
        "all GPUs, rows/s": f"{rows_per_s:,.0f}",
        "encoding, hours": f"{hours:.1f}",
        "decoding cores for each GPU": f"{rate / m.decoded:.1f}",
        "encode actor, share of its thread for batches": f"{rate / m.stacked:.2f}",
        "blocks": f"{blocks:,.0f}",
        "rows of a block": f"{rows_of_a_block:,}",
        "blocks a second": f"{rows_per_s / rows_of_a_block:,.0f}",
        "driver, share of a core for blocks": f"{m.block_ms / 1e3 * rows_per_s / rows_of_a_block:.2f}",
        "commits": f"{len(commits):,}",
        "fragments": f"{fragments:,}",
        "commits, driver minutes in all": f"{commit_s / 60:.1f}",
        "last commit, s": f"{(m.commit_ms + fragments * m.fragment_us / 1e3) / 1e3:.2f}",
        "manifest, MB": f"{fragments * m.manifest_bytes / 1e6:.1f}",
        "all manifests written, GB": f"{manifests / 1e9:.1f}",
        "a crash costs at most, s of work": f"{max(rows for rows, _ in commits) / rows_per_s:.0f}",
        "vectors and columns, TB": f"{_ROWS * row_bytes / 1e12:.2f}",
        "PUT requests": f"{puts:,.0f}",
        "shards": f"{shards:,}",
        "ledger, at most, MB": f"{claims * m.claim_bytes / 1e6:.1f}",
        "re-run: reading the ledger, at most, s": f"{claims * m.claim_us / 1e6:.1f}",
        "re-run: planning the shards, s": f"{shards * m.shard_us / 1e6:.1f}",
        "driver, memory for shards, GB": f"{shards * m.shard_bytes / 1e9:.1f}",
    }


def index_rows(m: Measured) -> list[dict[str, Any]]:
    """Build time of the index of a billion vectors, by number of workers with one core each."""
    partitions = plan_index(_ROWS, 512, 1 << 40).partitions
    (few, fast), (many, slow) = sorted(m.indexed.items())
    growth = (1 / slow - 1 / fast) / (many - few)
    core_s = _ROWS * (1 / fast + growth * (partitions - few))
    sample = 256 * partitions * 512 * 4
    return [
        {
            "cores": cores,
            "partitions": f"{partitions:,}",
            "segments, hours": f"{core_s / cores / 3600:.1f}",
            "sample for k-means, GB": f"{sample / 1e9:.0f}",
        }
        for cores in (64, 256, 1024)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {one:,.0f}" for key, one in value.items())
    return f"{value:.4g}"


def _read(shown: str) -> Any:
    """What `_shown` showed."""
    if ": " in shown:
        pairs = (one.split(": ") for one in shown.split("; "))
        return {int(key): float(value.replace(",", "")) for key, value in pairs}
    return float(shown)


def measured_anew(folder: Path) -> dict[str, Any]:
    """Take the measurements of this bench."""
    return {
        "block_ms": driver_ms_of_a_block(folder),
        "decoded": decode_rate(),
        "stacked": stack_rate(),
        "indexed": index_rates(folder, 100_000, (256, 4_096)),
    }


def measured_before() -> dict[str, Any]:
    """The last measurements of this bench, from its results."""
    kept = json.loads((RESULTS / "model.json").read_text())["tables"]["Measured"]
    values = {row["measured"]: _read(row["value"]) for row in kept}
    return {name: values[name] for name in ("block_ms", "decoded", "stacked", "indexed")}


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=None, help="folder to measure in; without it, the last measurements are used"
    )
    given = parser.parse_args()
    own = measured_before() if given.folder is None else measured_anew(given.folder)
    m = Measured(**read_results(), **own)
    limits = SinkLimits(block_rows=block_rows(_PIXEL_BYTES, _GPUS), commit_interval_s=_INTERVAL_S)
    fixed = SinkLimits(
        block_rows=limits.block_rows,
        commit_interval_s=_INTERVAL_S,
        fragment_rows=FRAGMENT_ROWS,
        commit_rows=COMMIT_ROWS,
    )
    runs = {f"{name}, 64 GPUs": computed(m, *published, limits) for name, published in _PUBLISHED.items()}
    runs["ViT-B/32, commits of 65,536 rows"] = computed(m, *_PUBLISHED["ViT-B/32"], fixed)
    first = next(iter(runs.values()))
    measured = [{"measured": name, "value": _shown(value)} for name, value in vars(m).items()]
    table = [{"a billion rows": key, **{name: run[key] for name, run in runs.items()}} for key in first]
    report(
        "model",
        "python -m benchmarks.model --folder FOLDER",
        {"Measured": measured, "The run": table, "The index": index_rows(m)},
        [],
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
