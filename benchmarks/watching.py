"""Watch a running command from outside: private memory of its processes, processor time of its driver."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil

# To find private memory, the kernel walks a process's memory. Polling more often slows down the processes.
_POLL_S = 1.0
_RAYS_OWN = ("raylet", "gcs_server")


@dataclass(frozen=True)
class Sample:
    """State at `seconds`: the driver's processor time and private bytes, and the progress."""

    seconds: float
    processor_s: float
    driver_bytes: int
    progress: int


@dataclass
class Watched:
    """The measurements of a command.

    Attributes:
        seconds: wall seconds from start to end.
        stdout: the command's standard output.
        driver_bytes: peak private bytes of the command's own process.
        worker_bytes: peak private bytes of its largest child process, except Ray's own processes.
        worker: title of that child process.
        workers_bytes: peak private bytes of all these child processes together.
        samples: samples in order of time.
    """

    seconds: float = 0.0
    stdout: str = ""
    driver_bytes: int = 0
    worker_bytes: int = 0
    worker: str = ""
    workers_bytes: int = 0
    samples: list[Sample] = field(default_factory=list)

    def driver_bytes_between(self, first: float, last: float) -> float:
        """Median private bytes of the driver between two shares of the whole progress; NaN without a sample there."""
        most = self.samples[-1].progress
        found = [s.driver_bytes for s in self.samples if first * most <= s.progress <= last * most]
        return statistics.median(found) if found else math.nan

    def processor_s_between(self, first: float, last: float) -> float:
        """Processor seconds of the driver per unit of progress, between two shares of the whole progress.

        NaN if the run was too short to measure.
        """
        start, end = self._ends(first, last)
        return (end.processor_s - start.processor_s) / ((end.progress - start.progress) or math.nan)

    def seconds_between(self, first: float, last: float) -> float:
        """Wall seconds per unit of progress, between two shares of the whole progress; NaN if the run was too short."""
        start, end = self._ends(first, last)
        return (end.seconds - start.seconds) / ((end.progress - start.progress) or math.nan)

    def _ends(self, first: float, last: float) -> tuple[Sample, Sample]:
        """The first and the last sample between two shares of the whole progress."""
        most = self.samples[-1].progress
        # Time before the first unit belongs to the start, time after the last to the end.
        inside = [s for s in self.samples if max(1.0, first * most) <= s.progress <= last * most]
        inside = [s for s in inside if s.progress < most] + [s for s in inside if s.progress == most][:1]
        return (inside[0], inside[-1]) if inside else (self.samples[0], self.samples[0])


def watch(command: Sequence[str], progress: Callable[[], int] = lambda: 0) -> Watched:
    """Run a command with its own Ray session and poll it until it ends.

    Args:
        command: the command to run.
        progress: returns the amount of finished work, in units that the caller chooses.

    Raises:
        SystemExit: the command failed; the error contains its output.
    """
    found = Watched()
    environment = os.environ | {"RAY_ADDRESS": "local"}
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=said)
        while process.poll() is None:
            _look(psutil.Process(process.pid), found, time.perf_counter() - started, progress())
            time.sleep(_POLL_S)
        found.seconds = time.perf_counter() - started
        printed.seek(0)
        said.seek(0)
        found.stdout = printed.read()
        if process.returncode:
            raise SystemExit(said.read())
    return found


def _look(root: psutil.Process, found: Watched, seconds: float, progress: int) -> None:
    try:
        used = root.cpu_times()
        held = root.memory_full_info().uss
        found.samples.append(Sample(seconds, used.user + used.system, held, progress))
        found.driver_bytes = max(found.driver_bytes, held)
        children = root.children(recursive=True)
    except psutil.Error:  # The process has just ended.
        return
    sizes = [(size, name) for child in children for size, name in [_private(child)] if size]
    found.worker_bytes, found.worker = max([(found.worker_bytes, found.worker), *sizes])
    found.workers_bytes = max(found.workers_bytes, sum(size for size, _ in sizes))


def _private(process: psutil.Process) -> tuple[int, str]:
    """Private bytes and title of a worker. 0 bytes for Ray's own processes and for processes that have ended."""
    try:
        name = process.name()
        if name in _RAYS_OWN or _is_agent(process):
            return 0, name
        title = " ".join(process.cmdline()[:1])
        return int(process.memory_full_info().uss), title
    except psutil.Error:
        return 0, ""


def _is_agent(process: psutil.Process) -> bool:
    return any(part.endswith(("agent.py", "main.py", "monitor.py", "log_monitor.py")) for part in process.cmdline()[:4])


def embed_command(corpus: object, table: object, *more: str) -> list[str]:
    """The command `isthmus embed` with the weight-free encoder."""
    return [
        sys.executable, "-m", "jobs.cli", "embed", str(corpus), "--table", str(table), "--encoder", "fake",
        "--columns.key", "id", "--json", *more,
    ]  # fmt: skip
