"""Runs `isthmus` from a test, in this process or in a separate one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from killing import is_worker

_POLL_S = 0.4
_WORKERS = ("ray::MapWorker", "ray::Read", "ray::Map", "ray::stage", "ray::IDLE")


def isthmus(
    *arguments: object, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in this process; return its exit code and its output on both standard streams.

    A separate process would spend seconds on imports. `isthmus_process` is for behaviour that only a separate process
    shows.

    Args:
        arguments: arguments after `isthmus`.
        cwd: the folder to run in.
        environment: additional environment variables.
    """
    from jobs.cli import app

    had_ray = _has_ray()
    with pytest.MonkeyPatch.context() as patch, _streams() as streams:
        if cwd is not None:
            patch.chdir(cwd)
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        try:
            returned = app.meta([str(argument) for argument in arguments], exit_on_error=False)
        except SystemExit as end:
            returned = end.code
        finally:
            app.config = ()
            # The next command would log to a closed stream.
            logging.getLogger().handlers.clear()
            sys.stdout.flush()
            sys.stderr.flush()
            if _has_ray() and not had_ray:
                # A later test's Ray needs other resources.
                sys.modules["ray"].shutdown()
            said = [stream.read_text(encoding="utf-8") for stream in streams]
    return subprocess.CompletedProcess(arguments, int(returned or 0), *said)


def _has_ray() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@contextmanager
def _streams() -> Iterator[tuple[Path, Path]]:
    """Files that receive what this process, its libraries and its children write to standard output and error."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "stdout"), Path(folder, "stderr")
        kept = [os.dup(1), os.dup(2)]
        python = sys.stdout, sys.stderr
        opened = [file.open("w", encoding="utf-8") for file in files]
        for number, stream in enumerate(opened, start=1):
            os.dup2(stream.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", encoding="utf-8") for number in (1, 2))
        try:
            yield files
        finally:
            for stream in (sys.stdout, sys.stderr, *opened):
                stream.close()
            sys.stdout, sys.stderr = python
            for number, copy in enumerate(kept, start=1):
                os.dup2(copy, number)
                os.close(copy)


def isthmus_process(
    *arguments: object, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `isthmus` in a separate process, as a script does.

    The command starts its own Ray, unless a test uses `shared_ray`.
    """
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    variables = {"RAY_ADDRESS": "local"} | os.environ | (environment or {})
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False, env=variables)


@dataclass(frozen=True)
class Watched:
    """What a command printed, and the peak private memory, in bytes, of the driver and of the largest worker."""

    stdout: str
    driver_bytes: int
    worker_bytes: int


def watched(*arguments: object) -> Watched:
    """Run `isthmus` on a Ray of its own and sample its memory all the time; it must succeed."""
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
