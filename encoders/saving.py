"""Atomic replacement of directories."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(directory: str | Path) -> Iterator[Path]:
    """A folder to write into; it replaces `directory` on success. On an error the existing directory stays.

    Raises:
        OSError: the folder cannot be made, written or moved; for example, the disk is full.
    """
    target = Path(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, former = (target.with_name(f".{target.name}.{kind}-{os.getpid()}") for kind in ("partial", "former"))
    for left_over in (partial, former):
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if target.exists():
            target.replace(former)
        try:
            partial.replace(target)
        except BaseException:
            if former.exists():
                former.replace(target)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)
