"""Thousands of mutated pictures: no crash, no hang, no good row lost, bounded memory."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken import BROKEN
from commands import watched
from corpora import picture
from PIL import Image

from encoders.images import ImageError, ImageTransform, prepare

FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "TIFF": ".tif"}
MUTATED, GOOD = 2_400, 300
MEMORY_BYTES = 1 << 30


def _sound(seed: int, kind: str) -> bytes:
    """A picture of a format; some are large enough to have several strips, scans or frames."""
    image = Image.open(io.BytesIO(picture(seed, size=(40 + seed % 200, 30 + seed % 150), kind="PNG")))
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": [image.rotate(90)]} if kind in ("GIF", "WEBP") and seed % 3 == 0 else {}
    if kind == "JPEG" and seed % 2:
        more = {"progressive": True}
    if kind == "TIFF":
        more = {"compression": ["raw", "tiff_lzw", "tiff_deflate", "jpeg"][seed % 4]}
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 3, 20])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_head(data: bytes, rng: random.Random) -> bytes:
    """Change bytes near the beginning, where sizes, tables and offsets are."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 5])):
        changed[rng.randrange(min(64, len(changed)))] = rng.choice([0, 0x7F, 0x80, 0xFF])
    return bytes(changed)


def _splice(data: bytes, rng: random.Random) -> bytes:
    """Repeat or leave out a piece in the middle of the file."""
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:b] + data[a:] if rng.random() < 0.5 else data[:a] + data[b:]


def _append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randrange(1, 3_000))


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [_cut, _flip, _flip_head, _splice, _append]


def _corpus(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """A list of paths, with mutated files between good ones and misleading extensions; and the bytes by key."""
    rng = random.Random(7)
    kinds, extensions = list(FORMATS), list(FORMATS.values())
    files: dict[str, bytes] = {}
    for i in range(MUTATED):
        if i % 40 == 39:
            files[f"bad-{i}"] = BROKEN[rng.choice(sorted(BROKEN))][1](i)
        else:
            files[f"bad-{i}"] = MUTATIONS[i // len(kinds) % len(MUTATIONS)](_sound(i, kinds[i % len(kinds)]), rng)
    files |= {f"good-{i}": _sound(10_000 + i, kinds[i % len(kinds)]) for i in range(GOOD)}
    keys = list(files)
    rng.shuffle(keys)
    (folder / "files").mkdir(parents=True)
    paths = []
    for key in keys:
        paths.append(f"files/{key}{rng.choice(extensions)}")
        (folder / paths[-1]).write_bytes(files[key])
    table = pa.table({"id": keys, "image_path": paths, "caption": [f"caption of {key}" for key in keys]})
    pq.write_table(table, folder / "c.parquet", row_group_size=300)
    return folder / "c.parquet", files


def _reason_alone(data: bytes) -> str | None:
    try:
        prepare(data, ImageTransform(size=(32, 32)))
    except ImageError as error:
        return error.reason
    return None


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["ray", "process"])
def test_a_fuzzed_corpus_ends_with_every_good_row(tmp_path: Path, engine: str) -> None:
    corpus, files = _corpus(tmp_path / "corpus")
    done = watched(
        "embed", corpus, "--table", tmp_path / "db" / "t", "--encoder", "fake", "--columns.key", "id", "--json",
        "--engine", engine,
    )  # fmt: skip
    report = json.loads(done.stdout)
    written = lance.dataset(str(tmp_path / "db" / "t.lance")).to_table(columns=["row_id"])["row_id"].to_pylist()
    rejects = lance.dataset(str(tmp_path / "db" / "t_rejects.lance")).to_table().to_pylist()
    reasons = {row["row_id"]: row["reason"] for row in rejects}
    print({"rejected": report["rejected"], "MiB": done.worker_bytes >> 20})  # noqa: T201

    assert report["rows_in"] == len(files) == len(written) + len(reasons)
    assert set(written) | set(reasons) == set(files)
    assert {key for key in files if key.startswith("good-")} <= set(written)
    assert done.worker_bytes < MEMORY_BYTES
    # The job must judge a file as a decoder judges its bytes alone.
    assert reasons == {key: reason for key, data in files.items() if (reason := _reason_alone(data))}
