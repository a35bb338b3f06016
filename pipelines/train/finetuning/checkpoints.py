"""Checkpoints of a run: one object each, replaced atomically, on a disk or on S3.

`latest` holds everything that the next step needs; `best` holds the weights with the best validation so far.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoders.digest import digest_json
from pipelines.store.storage import Storage, is_remote

LATEST, BEST, RUN = "latest.pt", "best.pt", "run.json"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder of a run: its checkpoints, logs and plots, at a path or `s3://` URI."""

    uri: str
    storage: Storage

    def path(self, name: str) -> str:
        """The URI of a file in the folder."""
        return f"{self.uri}/{name}"

    def write(self, name: str, data: bytes) -> None:
        """Write a file; an existing one stays until the new one is complete.

        Raises:
            OSError: the file cannot be written; the existing one stays.
        """
        if is_remote(self.uri):
            with self._clear_errors(name):
                self.storage.filesystem(self.uri).pipe_file(self.path(name), data)
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # A unique name: a worker of a killed driver may still be writing its last checkpoint.
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(
                f"{target}: cannot be written ({error.strerror}); the previous checkpoint is still valid"
            ) from error

    def tidy(self) -> None:
        """Remove the partial files of killed writers."""
        if not is_remote(self.uri):
            for partial in Path(self.uri).glob("*.partial"):
                partial.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None if it does not exist.

        Raises:
            OSError: the store cannot be read.
        """
        try:
            with self._clear_errors(name):
                return bytes(self.storage.filesystem(self.uri).cat_file(self.path(name)))
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _clear_errors(self, name: str) -> Iterator[None]:
        """Turn a store's errors that are not OSError (such as a missing endpoint) into OSError."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{self.path(name)}: the store cannot be reached: {error}; check the endpoint") from error

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write tensors and plain data to a file."""
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.write(name, buffer.getvalue())

    def load(self, name: str) -> dict[str, Any] | None:
        """The inverse of `save`; None if the file does not exist."""
        import torch

        data = self.read(name)
        if data is None:
            return None
        found: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return found


def claim_run(folder: RunFolder, config: dict[str, Any]) -> bool:
    """Record the config of a run, or check that it equals the config of the run already in the folder.

    Returns:
        Whether there is a run to resume.

    Raises:
        ValueError: the folder holds a run with another config; the message names the entries that differ.
    """
    raw = folder.read(RUN)
    folder.tidy()
    if raw is None:
        folder.write(RUN, json.dumps(config, indent=2, sort_keys=True).encode())
        return False
    former = json.loads(raw)
    if digest_json(former) == digest_json(config):
        return folder.read(LATEST) is not None
    former, config = _flat(former), _flat(config)
    names = sorted(name for name in {*former, *config} if former.get(name) != config.get(name))
    changes = "; ".join(f"{name}: was {former.get(name)!r}, now {config.get(name)!r}" for name in names)
    raise ValueError(
        f"run {folder.uri}: was started with another config ({changes}); give that config to resume it, or another "
        "--out, or remove the folder"
    )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested entries under dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
