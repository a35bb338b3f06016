"""What a plan asks of disks and stores: whether two paths lead to one folder, and whether files are there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.store.storage import Storage, is_remote


class World(Protocol):
    """What is to be known about folders besides their names."""

    def is_same(self, a: str, b: str) -> bool:
        """Whether two paths lead to one folder."""
        ...

    def has_any(self, folder: str, paths: Iterable[str]) -> bool:
        """Whether a folder is there and has one of these files."""
        ...


@dataclass(frozen=True)
class Folders:
    """`World` as it is: the disks of this machine, and one store."""

    storage: Storage

    def is_same(self, a: str, b: str) -> bool:
        """Whether two paths lead to one folder on a disk. A store has no links."""
        if is_remote(a) or is_remote(b):
            return a == b
        try:
            return Path(a).samefile(b)
        except OSError:
            return False

    def has_any(self, folder: str, paths: Iterable[str]) -> bool:
        """Whether a folder has one of these files. A store that does not say counts as if it had."""
        if not is_remote(folder):
            return os.path.isdir(folder) and any(os.path.lexists(f"{folder}/{path}") for path in paths)  # noqa: PTH112
        try:
            files = self.storage.filesystem(folder)
            there = {name.removeprefix("s3://") for name in files.find(folder)}
        except FileNotFoundError:
            return False
        except Exception:  # Whatever a client raises: the store may have them.
            return True
        key = folder.removeprefix("s3://")
        return any(f"{key}/{path}" in there for path in paths)
