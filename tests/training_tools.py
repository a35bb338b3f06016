"""Learnable corpora, tables of given features, and runs, for the tests of training."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import lance
import numpy as np
import psutil
import pyarrow as pa
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from encoders.registry import describe
from jobs.finetune import FinetuneConfig
from pipelines.store.storage import TableRef
from pipelines.tables.provenance import Provenance

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
_LATENT = 6
SHAPES = ("circle", "square", "bar")


def coloured_shape(colour: str, shape: str, size: int = 32) -> bytes:
    """A picture that its caption describes."""
    import io

    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    box = (6, 6, size - 6, size - 6) if shape != "bar" else (2, size // 2 - 3, size - 2, size // 2 + 3)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=COLOURS[colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def latent_table(path: Path, spec: str, n: int = 200, *, seed: int = 0, bad_row: int | None = None) -> TableRef:
    """A table as `isthmus embed` makes it with `spec`, of features with a hidden cause that heads can find."""
    card = describe(spec).card
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(n, _LATENT))
    columns: dict[str, Any] = {}
    for modality in ("image", "text"):
        dim = card.tower(modality).dim  # type: ignore[arg-type,union-attr]
        # The same mixing for every table of a seed's family, so that what was learned on one works on another.
        mixing = np.random.default_rng(len(modality)).normal(size=(_LATENT, dim))
        vectors = cause @ mixing + 0.1 * rng.normal(size=(n, dim))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if bad_row is not None and modality == "image":
            vectors[bad_row] = np.nan
        flat = pa.array(vectors.astype(np.float32).ravel())
        columns[f"{modality}_vector"] = pa.FixedSizeListArray.from_arrays(flat, dim)
    rows = pa.table(
        {
            "row_id": [f"r{i}" for i in range(n)],
            "item_id": [f"i{i}" for i in range(n)],
            "caption": [f"thing {i}" for i in range(n)],
            "image_uri": pa.nulls(n, pa.string()),
            "n": list(range(n)),
            **columns,
        }
    )
    provenance = Provenance(encoder=card, modalities=("image", "text"))
    ref = TableRef.parse(str(path))
    lance.write_dataset(rows.replace_schema_metadata(provenance.to_metadata()), ref.uri, max_rows_per_file=64)
    return ref


def shapes_corpus(folder: Path, n: int = 48) -> Path:
    """A Parquet corpus of `n` coloured shapes, no two pictures the same, whose captions name colour and shape."""
    import itertools

    import pyarrow.parquet as pq

    kinds = list(itertools.product(COLOURS, SHAPES))
    said = [kinds[i % len(kinds)] for i in range(n)]
    rows = pa.table(
        {
            "id": [f"k{i:04d}" for i in range(n)],
            "image": pa.array([coloured_shape(*kind, size=28 + i // len(kinds)) for i, kind in enumerate(said)]),
            "caption": [" ".join(kind) for kind in said],
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "a.parquet")
    return folder


def vit_and_bert(folder: Path) -> str:
    """The spec of two tiny backbones that get new heads."""
    import tiny_models

    return f"{tiny_models.tiny_vit(folder / 'vit')}+{tiny_models.tiny_bert(folder / 'bert')}"


def heads_config(table: str, towers: str, out: Path, **changes: Any) -> FinetuneConfig:
    """Heads on features that a table holds: hundreds of steps per second."""
    given = {
        "corpus": table,
        "encoder": towers,
        "out": str(out),
        "dim": 8,
        "epochs": 4,
        "batch_size": 32,
        "learning_rate": 0.02,
        "warmup_steps": 2,
        "validation_fraction": 0.2,
        "log_every": 1,
    }
    return FinetuneConfig(**{**given, **changes})


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The parameters of a trained model."""
    return load_file(out / "model.safetensors")


def losses(out: Path) -> dict[int, float]:
    """The losses that a run logged, by step."""
    rows = [json.loads(line) for line in Path(f"{out}.run/log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def assert_same_weights(a: Path, b: Path, tolerance: float = 0.0) -> None:
    """Assert equality, bit for bit or to a tolerance."""
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if tolerance:
            torch.testing.assert_close(second[name], tensor, rtol=tolerance, atol=tolerance, msg=name)
        else:
            assert torch.equal(second[name], tensor), name


def latest_step(run_folder: Path) -> int:
    """The step of a run's last checkpoint; −1 if there is none."""
    path = run_folder / "latest.pt"
    return int(torch.load(path, weights_only=True)["step"]) if path.is_file() else -1


def training_workers() -> list[psutil.Process]:
    """The training processes of the Ray that this process started, and of no other."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("TrainWorker" in part for part in (process.name(), *process.cmdline()[:1])):
                found.append(process)
    return found
