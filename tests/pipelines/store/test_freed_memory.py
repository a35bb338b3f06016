"""A process reuses the memory that it frees, and returns it in the end."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

_CODE = """
import json, resource
import numpy as np, psutil
from pipelines.store import memory
freed = memory.FreedMemory()
def block():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults = [block(), block()]
freed.give_back()
kept = psutil.Process().memory_info().rss
memory._EVERY_S = 0.0
freed.give_back()
print(json.dumps([*faults, kept - psutil.Process().memory_info().rss]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_pages_of_a_block_are_new_once_and_given_back_later() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], check=True, capture_output=True, text=True)
    first, second, given_back = json.loads(done.stdout)
    assert first > 10 * max(second, 1)
    assert given_back > 48 << 20
