"""Digests of files and of plain data: short, stable across machines and Python versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

_DIGEST_BYTES = 8
_CHUNK_BYTES = 1 << 22


def digest_bytes(*parts: bytes | memoryview, size: int = _DIGEST_BYTES) -> str:
    """BLAKE2b over the length-prefixed parts, two hex digits for each of `size` bytes."""
    state = hashlib.blake2b(digest_size=size)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def digest_large(data: bytes | memoryview, size: int = _DIGEST_BYTES) -> str:
    """BLAKE3, two hex digits for each of `size` bytes: of megabytes in a fifth of BLAKE2b's time, of a line in more.

    The hash is a tree of kilobytes, which SIMD takes several at a time (O'Connor, Aumasson, Neves and Wilcox-O'Hearn,
    "BLAKE3: one function, fast everywhere", 2020).
    """
    from blake3 import blake3  # A machine that only encodes or trains need not have it.

    return blake3(data).hexdigest(length=size)


def digest_json(data: Any, size: int = _DIGEST_BYTES) -> str:
    """Digest of JSON-ready data, of `size` bytes, independent of the order of keys."""
    return digest_bytes(json.dumps(data, sort_keys=True, separators=(",", ":")).encode(), size=size)


def digest_files(paths: Iterable[Path]) -> str:
    """Digest of the contents and names (not folders) of files, independent of the order given.

    Raises:
        FileNotFoundError: a path is missing.
    """
    ordered = sorted(paths, key=lambda p: p.name)
    return _digest_files(tuple(_as_it_is(path) for path in ordered))


def _as_it_is(path: Path) -> tuple[Path, int, int, int]:
    found = path.stat()
    return path, found.st_size, found.st_mtime_ns, found.st_ino


@lru_cache(maxsize=64)
def _digest_files(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    """Of files with their size, time of change and inode: an encoder is described, checked and then loaded, and its
    weights are read for a digest once a process.
    """
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for path, size, _, _ in files:
        state.update(path.name.encode() + b"\0" + size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                state.update(chunk)
    return state.hexdigest()
