"""`isthmus` in a process of its own, as a script calls it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from killing import is_worker

_POLL_S = 0.4
_WORKERS = ("ray::MapWorker", "ray::Read", "ray::Map", "ray::stage", "ray::IDLE")


def isthmus(
    *arguments: object, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What the command printed, and its exit code.

    Args:
        arguments: after `isthmus`.
        cwd: the folder to run in.
        environment: more variables. The command starts a Ray of its own, but for tests that use `shared_ray`.
    """
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    variables = {"RAY_ADDRESS": "local"} | os.environ | (environment or {})
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False, env=variables)


@dataclass(frozen=True)
class Watched:
    """What a command printed, and the peaks of private memory, in bytes, of the driver and of the largest worker."""

    stdout: str
    driver_bytes: int
    worker_bytes: int


def watched(*arguments: object) -> Watched:
    """`isthmus` on a Ray of its own, its memory looked at all the time; it must succeed."""
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    driver, workers = 0, 0
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, env=environment, stdout=printed)
        while process.poll() is None:
            try:
                root = psutil.Process(process.pid)
                driver = max(driver, root.memory_full_info().uss)
                for child in root.children(recursive=True):
                    if child.name().startswith(_WORKERS) or is_worker(child):
                        workers = max(workers, child.memory_full_info().uss)
            except psutil.Error:
                pass
            time.sleep(_POLL_S)
        assert process.returncode == 0
        printed.seek(0)
        return Watched(printed.read(), driver, workers)
