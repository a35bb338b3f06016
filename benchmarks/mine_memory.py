"""Mining of a million rows: peak memory of each process, yield, and recall of planted negatives.

    python benchmarks/mine_memory.py --rows 1000000 --dim 64 --folder /tmp/mining

Makes a table of clustered vectors in batches, with pictures and captions a little apart in a joint space. Plants
anchors with one hard negative and three false ones each, runs `isthmus mine` in a separate process, and prints one JSON
object. The exit code is 1 if a planted hard negative is missing, a planted false one was mined, or a process took more
memory than `--limit-mib`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lance
import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

from encoders.registry import describe
from pipelines.store.storage import TableRef
from pipelines.tables.provenance import Provenance
from pipelines.train.mining.mined import read_mined

_BATCH = 20_000
_PLANTED = 200
_GROUP = 5  # rows of a planted group: anchor, hard, same picture, same words, above the margin
_POLL_S = 0.3


def unit(vectors: NDArray) -> NDArray[np.float32]:
    """Rows of length 1, float32."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def mixed(base: NDArray, noise: NDArray, cosine: float) -> NDArray[np.float32]:
    """Unit vectors at exactly this cosine to those of `base`, in the direction of `noise`; float32 (n, dim)."""
    away = unit(noise - np.einsum("nd,nd->n", noise, base)[:, None] * base)
    return unit(cosine * base + np.sqrt(1 - cosine**2) * away)


def planted(
    dim: int, centres: NDArray, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[str]]:
    """Image vectors, text vectors and captions of the planted groups, for text to image."""
    n = _PLANTED
    noise = iter(rng.standard_normal((12, n, dim)))
    query = unit(centres[:n] + 0.8 * next(noise))  # among the pictures, like hard negatives
    positive = mixed(query, next(noise), 0.95)
    pictures = [positive, mixed(query, next(noise), 0.85), mixed(positive, next(noise), 0.999),
                mixed(query, next(noise), 0.84), mixed(query, next(noise), 0.94)]  # fmt: skip
    texts = [query, *(unit(next(noise)) for _ in range(4))]
    words = [[f"anchor {i}", f"hard {i}", f"same picture {i}", f" ANCHOR  {i}.", f"too good {i}"] for i in range(n)]
    order = (n, _GROUP, dim)
    return (
        np.stack(pictures, 1).reshape(order).reshape(-1, dim),
        np.stack(texts, 1).reshape(order).reshape(-1, dim),
        [caption for group in words for caption in group],
    )


def batches(rows: int, dim: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The table in batches: first the planted groups, then pairs around cluster centres, two captions per picture."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2_000, dim))
    gap = rng.standard_normal(dim)  # captions lie apart from pictures, in one direction
    images, texts, captions = planted(dim, centres, rng)
    yield batch(schema, 0, images, texts, captions, per_item=1)
    for start in range(len(images), rows, _BATCH):
        n = min(_BATCH, rows - start)
        pictures = unit(
            centres[rng.integers(0, len(centres), (n + 1) // 2)] + 0.8 * rng.standard_normal(((n + 1) // 2, dim))
        )
        image = np.repeat(pictures, 2, axis=0)[:n]
        text = mixed(image, gap + 0.3 * rng.standard_normal((n, dim)), 0.7)
        yield batch(schema, start, image, text, [f"row {start + i}" for i in range(n)], per_item=2)


def batch(
    schema: pa.Schema, start: int, image: NDArray, text: NDArray, captions: list[str], per_item: int
) -> pa.RecordBatch:
    """A batch of rows of the table."""
    n, kind = len(image), schema.field("image_vector").type
    ids = range(start, start + n)
    columns = [
        [f"r{i}" for i in ids],
        [f"i{start + (i - start) // per_item}" for i in ids],
        captions,
        pa.FixedSizeListArray.from_arrays(pa.array(image.ravel()), type=kind),
        pa.FixedSizeListArray.from_arrays(pa.array(text.ravel()), type=kind),
    ]
    return pa.record_batch(columns, schema=schema)


def make_table(table: TableRef, rows: int, dim: int) -> None:
    """Write the table, unless it already exists."""
    if Path(table.uri).exists():
        return
    vector = pa.list_(pa.float32(), dim)
    fields = [("row_id", pa.string()), ("item_id", pa.string()), ("caption", pa.string())]
    provenance = Provenance(encoder=describe(f"fake-{dim}").card, modalities=("image", "text"))
    schema = pa.schema([*fields, ("image_vector", vector), ("text_vector", vector)], metadata=provenance.to_metadata())
    reader = pa.RecordBatchReader.from_batches(schema, batches(rows, dim, schema))
    lance.write_dataset(reader, table.uri, schema=schema, max_rows_per_file=100_000)


def run(arguments: list[str]) -> tuple[dict, dict[str, int]]:
    """Run `isthmus mine`: its report, and the peak private MiB of the driver and of the largest worker of each kind."""
    command = [sys.executable, "-m", "jobs.cli", "mine", *arguments, "--json"]
    process = subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": "local"}, stdout=subprocess.PIPE, text=True)
    peaks: dict[str, int] = {}
    while process.poll() is None:
        try:
            root = psutil.Process(process.pid)
            for found in (root, *root.children(recursive=True)):
                name = "driver" if found.pid == process.pid else found.name()
                if name == "driver" or name.startswith("ray::"):
                    peaks[name] = max(peaks.get(name, 0), found.memory_full_info().uss >> 20)
        except psutil.Error:
            pass
        time.sleep(_POLL_S)
    assert process.stdout is not None
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(process.stdout.read()), peaks


def check(out: TableRef) -> dict[str, int]:
    """Count the planted hard negatives that were found and the false ones that were mined."""
    rows = read_mined(out).negatives
    rows = rows.filter(pa.compute.equal(rows["direction"], "text_to_image"))
    pairs = {(a, n) for a, n in zip(rows["row_id"].to_pylist(), rows["negative_row_id"].to_pylist(), strict=True)}
    starts = range(0, _PLANTED * _GROUP, _GROUP)
    return {
        "planted": _PLANTED,
        "hard_found": sum((f"r{i}", f"r{i + 1}") in pairs for i in starts),
        "false_mined": sum((f"r{i}", f"r{i + k}") in pairs for i in starts for k in (2, 3, 4)),
    }


def main() -> int:
    """Make, mine, measure, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--limit-mib", type=int, default=1_500)
    options, rest = parser.parse_known_args()
    table = TableRef.parse(str(options.folder / f"rows{options.rows}_{options.dim}"))
    out = table.sibling("negatives")
    make_table(table, options.rows, options.dim)
    started = time.perf_counter()
    report, peaks = run([str(table), "--out", str(out), *rest])
    found = check(out)
    result = {
        "rows": options.rows,
        "dim": options.dim,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_private_mib": peaks,
        **found,
        "directions": [{k: v for k, v in d.items() if k != "scores"} for d in report["directions"]],
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    good = found["hard_found"] == _PLANTED and not found["false_mined"] and max(peaks.values()) <= options.limit_mib
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
