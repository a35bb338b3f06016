"""What a process that works for days does with the memory that it has freed.

A block's pictures and pixels are tens of megabytes that are allocated, used once and freed. Given back to the system at
once, each of their pages is new the next time: the system clears it, which on virtual machines takes longer than what
is done with it. Never given back, a process grows to the sum of its worst moments. So it is kept, and given back now
and then. All this is glibc's; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import Any

import pyarrow as pa

# Of glibc's malloc.h. Blocks above the threshold would be mapped and unmapped one by one.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30
_MOST_ONCE = 32 << 20  # What the first takes at the most before glibc 2.35.
_EVERY_S = 5.0


class FreedMemory:
    """Keeps what this process frees, and gives it back every few seconds."""

    def __init__(self) -> None:
        self._libc: Any = ctypes.CDLL(None)
        self._last = time.monotonic()
        # Arrow's own allocators keep what was freed for good.
        pa.set_memory_pool(pa.system_memory_pool())
        if hasattr(self._libc, "mallopt"):
            any(self._libc.mallopt(_M_MMAP_THRESHOLD, size) for size in (_KEPT_BYTES, _MOST_ONCE))
            self._libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)

    def give_back(self) -> None:
        """Call this after each block; it takes some milliseconds, every few seconds."""
        if time.monotonic() - self._last >= _EVERY_S:
            self._last = time.monotonic()
            if hasattr(self._libc, "malloc_trim"):
                self._libc.malloc_trim(0)


@cache
def freed_memory() -> FreedMemory:
    """That of this process."""
    return FreedMemory()
