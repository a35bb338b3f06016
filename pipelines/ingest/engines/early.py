"""Processes for the stages, started before anybody knows what they will do: while the driver lists and plans, they do
their imports, which take longer. Nothing heavy is imported here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

_WORKER = "pipelines.ingest.engines.worker"


@dataclass(frozen=True, kw_only=True)
class Started:
    """A process that waits for its task.

    Attributes:
        process: its standard input and output are pipes.
        said: what it says on standard error.
    """

    process: subprocess.Popen[bytes]
    said: IO[bytes]

    @property
    def inbox(self) -> IO[bytes]:
        """What it is told goes there."""
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def outbox(self) -> IO[bytes]:
        """What it says comes from there."""
        assert self.process.stdout is not None
        return self.process.stdout

    def end(self, last: Callable[[], None] = lambda: None) -> None:
        """Kill it, wait for its end, and close what belongs to it.

        Args:
            last: called between the two.
        """
        self.process.kill()
        self.process.wait()
        last()
        self.said.close()
        self.outbox.close()
        with contextlib.suppress(BrokenPipeError):
            self.inbox.close()


def start(spec: str) -> Started:
    """A process that will run the stages.

    Args:
        spec: the encoder that it will load.
    """
    said = tempfile.TemporaryFile()  # noqa: SIM115
    # A session of its own: Ctrl-C is for the driver, which ends it.
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {_WORKER} import main; main()", spec],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )
    return Started(process=process, said=said)


class Reserve:
    """Processes that were started early. Use it as a context: those that nobody took end with it.

    Args:
        spec: the encoder that they will load.
        count: how many.
    """

    def __init__(self, spec: str, count: int) -> None:
        self._waiting = [start(spec) for _ in range(count)]

    def __enter__(self) -> Reserve:
        return self

    def __exit__(self, *error: object) -> None:
        self.dismiss()

    def take(self) -> Started | None:
        """One of them, None where none is left that lives."""
        while self._waiting:
            started = self._waiting.pop()
            if started.process.poll() is None:
                return started
            started.end()
        return None

    def dismiss(self) -> None:
        """End those that nobody took."""
        while self._waiting:
            self._waiting.pop().end()
