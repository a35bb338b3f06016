"""Digests of files and of plain data: short, and the same on every machine and Python version."""

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
    """BLAKE2b over the parts, each prefixed with its length: `size` bytes as 2·`size` hex digits."""
    state = hashlib.blake2b(digest_size=size)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def digest_large(data: bytes | memoryview, size: int = _DIGEST_BYTES) -> str:
    """BLAKE3 of `data`: `size` bytes as 2·`size` hex digits.

    BLAKE3 takes a fifth of BLAKE2b's time for megabytes, but longer for short strings. Its hash is a tree of 1 KiB
    chunks, several of which SIMD processes at once (O'Connor, Aumasson, Neves and Wilcox-O'Hearn, "BLAKE3: one
    function, fast everywhere", 2020).
    """
    from blake3 import blake3  # Imported here: a machine that only encodes or trains need not have it.

    return blake3(data).hexdigest(length=size)


def digest_json(data: Any, size: int = _DIGEST_BYTES) -> str:
    """Digest of JSON-ready data, `size` bytes as hex digits; the order of keys does not matter."""
    return digest_bytes(json.dumps(data, sort_keys=True, separators=(",", ":")).encode(), size=size)


def digest_files(paths: Iterable[Path]) -> str:
    """Digest of the files' contents and names (without folders); the order of `paths` does not matter.

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
    """Digest of files, cached by size, modification time and inode.

    An encoder is described, checked and then loaded; the cache makes each process read the weights once for all three.
    """
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for path, size, _, _ in files:
        state.update(path.name.encode() + b"\0" + size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                state.update(chunk)
    return state.hexdigest()
