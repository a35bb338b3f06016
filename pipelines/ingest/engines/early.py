"""Worker processes that start before the work is known.

They import their libraries while the driver lists and plans, which takes less time than the imports. Nothing heavy is
imported here.
"""

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
    """A worker process that waits for its task.

    Attributes:
        process: the process; its standard input and output are pipes.
        said: temporary file that receives its standard error.
    """

    process: subprocess.Popen[bytes]
    said: IO[bytes]

    @property
    def inbox(self) -> IO[bytes]:
        """Pipe to the process, for messages from the driver."""
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def outbox(self) -> IO[bytes]:
        """Pipe from the process, with its messages to the driver."""
        assert self.process.stdout is not None
        return self.process.stdout

    def end(self, last: Callable[[], None] = lambda: None) -> None:
        """Kill the process, wait for its end, and close its pipes and files.

        Args:
            last: called after the process has ended and before anything is closed.
        """
        self.process.kill()
        self.process.wait()
        last()
        self.said.close()
        self.outbox.close()
        with contextlib.suppress(BrokenPipeError):
            self.inbox.close()


def start(spec: str) -> Started:
    """Start a worker process.

    Args:
        spec: spec of the encoder that the process will load.
    """
    said = tempfile.TemporaryFile()  # noqa: SIM115
    # In its own session the process does not receive Ctrl-C; the driver does, and ends it.
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
    """Worker processes that were started early. It is a context manager: on exit, processes that were not taken end.

    Args:
        spec: spec of the encoder that the processes will load.
        count: number of processes.
    """

    def __init__(self, spec: str, count: int) -> None:
        self._waiting = [start(spec) for _ in range(count)]

    def __enter__(self) -> Reserve:
        return self

    def __exit__(self, *error: object) -> None:
        self.dismiss()

    def take(self) -> Started | None:
        """One of the living processes; None if none is left."""
        while self._waiting:
            started = self._waiting.pop()
            if started.process.poll() is None:
                return started
            started.end()
        return None

    def dismiss(self) -> None:
        """End the processes that were not taken."""
        while self._waiting:
            self._waiting.pop().end()
