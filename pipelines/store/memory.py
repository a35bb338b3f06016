"""Keeps freed memory in the process and returns it to the system every few seconds.

A block's pictures and pixels take tens of megabytes, which are allocated, used once and freed. If the process returns
this memory at once, the system must clear each page before its next use, which on virtual machines takes longer than
the work on the data itself. If it never returns any, the process grows to the sum of its peaks. Hence the compromise.
All of this applies to glibc; other C libraries are left alone.
"""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import Any

import pyarrow as pa

# Option numbers from glibc's malloc.h. Allocations above the mmap threshold would be mapped and unmapped one by one.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30
_MOST_ONCE = 32 << 20  # The largest mmap threshold that glibc before 2.35 accepts.
_EVERY_S = 5.0


class FreedMemory:
    """Keeps the memory that this process frees, and returns it to the system every few seconds."""

    def __init__(self) -> None:
        self._libc: Any = ctypes.CDLL(None)
        self._last = time.monotonic()
        # Arrow's own allocators would never return freed memory.
        pa.set_memory_pool(pa.system_memory_pool())
        if hasattr(self._libc, "mallopt"):
            any(self._libc.mallopt(_M_MMAP_THRESHOLD, size) for size in (_KEPT_BYTES, _MOST_ONCE))
            self._libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)

    def give_back(self) -> None:
        """Call after each block: returns freed memory, at most every five seconds. It takes milliseconds."""
        if time.monotonic() - self._last >= _EVERY_S:
            self._last = time.monotonic()
            if hasattr(self._libc, "malloc_trim"):
                self._libc.malloc_trim(0)


@cache
def freed_memory() -> FreedMemory:
    """The instance of this process."""
    return FreedMemory()
