"""From a run's weights to a directory that `isthmus embed --encoder` reads."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from pipelines.store.storage import Storage, is_remote
from pipelines.train.finetuning.building import build, plain
from pipelines.train.finetuning.train_settings import ModelSettings

STORY = "training.json"


def save_model(
    settings: ModelSettings,
    weights: dict[str, torch.Tensor],
    out: str,
    story: dict[str, Any],
    storage: Storage | None = None,
) -> str:
    """Write the model with these weights and its adapters merged, and a record of its training.

    Args:
        settings: how the model is built.
        weights: state dict of the `PairsModel`.
        out: a directory or an `s3://` prefix.
        story: record of the training, written to `training.json`.
        storage: how to reach `out`; None takes the defaults.

    Returns:
        `out`.

    Raises:
        OSError: `out` cannot be written; on a disk, an existing model stays.
    """
    pairs_model = build(settings)
    pairs_model.load_state_dict(weights)
    model = plain(pairs_model.eval())
    if not is_remote(out):
        model.save(Path(out))
        (Path(out) / STORY).write_text(json.dumps(story, indent=2, sort_keys=True, default=str))
        return out
    with tempfile.TemporaryDirectory(prefix="isthmus-model-") as scratch:
        folder = model.save(Path(scratch) / "model")
        (folder / STORY).write_text(json.dumps(story, indent=2, sort_keys=True, default=str))
        files = (storage or Storage.from_options()).filesystem(out)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                files.pipe_file(f"{out}/{path.relative_to(folder)}", path.read_bytes())
    return out
