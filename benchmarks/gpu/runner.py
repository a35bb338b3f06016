"""Parts under a limit: a worker process measures them one after another, this one watches the time and writes."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from benchmarks.gpu import follows
from benchmarks.gpu.base import Bench, Row, run_steps
from benchmarks.gpu.results import PartResult, Results

# A part that overstays its share by this factor, and these seconds, hangs.
_PATIENCE, _GRACE_S = 1.5, 5.0
# Imported before the first part, from a cold disk perhaps.
_WARM, _START_S = ("torch", "benchmarks.gpu.models"), 90.0
_CLOSING_S = 3.0
_LATE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the bench.

    Attributes:
        name: in a word.
        about: what it shows.
        module: where its `STEPS` are.
        share: its weight in the time that is left for it and those after it.
        least_s: with less time than this it is not begun.
    """

    name: str
    about: str
    module: str
    share: float
    least_s: float = 1.0


class Worker:
    """A process that measures. It is replaced when a part fails in it: CUDA does not recover from some errors."""

    def __init__(self, bench: Bench, warm: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(bench, warm, theirs))
        self._process.start()
        theirs.close()

    def rows(self, module: str, limit_s: float, hard_limit_s: float) -> Iterator[Row]:
        """The rows of a part as they come.

        Raises:
            OSError: it did not end within its hard limit.
            EOFError: the process ended; it ends itself at the hard limit.
        """
        ends_at = time.monotonic() + hard_limit_s + _LATE_S
        self._pipe.send((module, limit_s, hard_limit_s))
        while (row := self._next(ends_at)) is not None:
            yield row

    def wait(self, limit_s: float) -> None:
        """Until what is warm is imported, which is nobody's part.

        Raises:
            OSError: it takes longer.
            EOFError: the process ended.
        """
        self._next(time.monotonic() + limit_s)

    def _next(self, ends_at: float) -> Row | None:
        if not self._pipe.poll(max(0.0, ends_at - time.monotonic())):
            raise TimeoutError
        message: Row | None = self._pipe.recv()
        return message

    def kill(self) -> None:
        """End it, with all that it started."""
        self._pipe.close()
        assert self._process.pid is not None
        with contextlib.suppress(OSError):  # It may be gone, or not yet lead a group of its own.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join(_LATE_S)


def serve(bench: Bench, warm: Sequence[str], pipe: Connection) -> None:
    """Import what is warm; then answer each (module, limit, hard limit) by the rows of its steps, and None. End when
    nobody asks any more."""
    os.setsid()  # so that those that it starts end with it
    for module in warm:
        with contextlib.suppress(ImportError):  # A part that needs what is missing says so itself.
            importlib.import_module(module)
    with contextlib.suppress(EOFError, BrokenPipeError):
        pipe.send(None)
        while True:
            module, limit_s, hard_limit_s = pipe.recv()
            # Whatever hangs, or if the other process is gone: this one ends by itself, and says where it was.
            faulthandler.dump_traceback_later(hard_limit_s, exit=True)
            steps = importlib.import_module(module).STEPS
            for row in run_steps(steps, replace(bench, ends_at=time.monotonic() + limit_s)):
                pipe.send(row)
            faulthandler.cancel_dump_traceback_later()
            pipe.send(None)


class Run:
    """A run of some parts within a limit."""

    def __init__(self, results: Results, bench: Bench, limit_s: float, warm: Sequence[str] = _WARM) -> None:
        self.results = results
        self._warm = warm
        self._bench = bench
        self._ends_at = time.monotonic() + limit_s - _CLOSING_S
        self._worker: Worker | None = None

    @property
    def left_s(self) -> float:
        """Seconds that the run has left."""
        return self._ends_at - time.monotonic()

    def all(self, parts: Sequence[Part]) -> None:
        """Measure them in order."""
        try:
            for i, part in enumerate(parts):
                self._one(part, part.share / sum(later.share for later in parts[i:]))
        finally:
            if self._worker is not None:
                self._worker.kill()
        self.results.finished = True
        self.results.write()

    def _one(self, part: Part, share: float) -> None:
        found = self.results.parts[part.name] = PartResult(about=part.about)
        started = time.monotonic()
        for row in self._measure(part, share):
            found.rows.append(row)
            self.results.write()
        found.seconds = round(time.monotonic() - started, 1)
        self.results.write()
        sys.stderr.write(f"{part.name}: {found.status}, {found.seconds:.0f} s\n")

    def _measure(self, part: Part, share: float) -> Iterator[Row]:
        if part.name == "follows":
            yield from follows.rows(self.results)
            return
        limit, hard = self._limits(part, share)
        if limit < part.least_s:
            left = f"{max(limit, 0):.1f} s are left for it"
            yield Row(what=part.name, status="skipped", note=f"takes {part.least_s:g} s at least, and {left}")
            return
        failed = True
        started = time.monotonic()
        try:
            worker = self._ready_worker()
            limit, hard = self._limits(part, share)
            started = time.monotonic()
            failed = False
            for row in worker.rows(part.module, limit, hard):
                failed = failed or row.status == "failed"
                yield row
        except (OSError, EOFError):
            failed = True
            late = time.monotonic() - started > hard - _LATE_S
            note = f"stopped at its limit of {hard:.1f} s" if late else "its process ended"
            yield Row(what=part.name, status="failed", note=f"{note}; the program's messages say where")
        if failed:
            self._drop_worker()

    def _limits(self, part: Part, share: float) -> tuple[float, float]:
        """Seconds after which no further step begins, and after which the part is stopped."""
        limit = self.left_s * share
        return limit, max(0.0, min(limit * _PATIENCE + _GRACE_S, self.left_s))

    def _ready_worker(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self._bench, self._warm)
            self._worker.wait(max(0.0, min(_START_S, self.left_s)))
        return self._worker

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


def watch(limit_s: float) -> None:
    """End this process at the limit whatever happens, with status 1."""
    faulthandler.dump_traceback_later(limit_s, exit=True)
