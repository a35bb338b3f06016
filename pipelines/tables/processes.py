"""Which process is meant, told apart from later processes, other boots, and other containers of the same host name."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process.

    Attributes:
        host: host name of the machine.
        pid: process id.
        started: when the process started: clock ticks since the boot, or Unix seconds where the system does not tell.
        boot: id of the machine's boot; empty if it is not known.
        namespace: the space in which the process id counts (a container has one of its own); empty if not known.
    """

    host: str
    pid: int
    started: float
    boot: str = ""
    namespace: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProcessIdentity:
        """The identity in a mapping with these and other keys."""
        return cls(**{name: data[name] for name in cls.__dataclass_fields__ if name in data})

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@cache
def _this_process(pid: int) -> ProcessIdentity:
    return ProcessIdentity(
        host=socket.gethostname(), pid=pid, started=_started(pid) or 0.0, boot=_boot(), namespace=_namespace()
    )


def this_process() -> ProcessIdentity:
    """The identity of this process."""
    return _this_process(os.getpid())


def is_running(process: ProcessIdentity) -> bool | None:
    """Whether a process runs; None if this process cannot tell.

    It can tell only of processes of the same boot of the same machine that are numbered in the same space.
    """
    mine = this_process()
    if not process.boot or (process.boot, process.namespace) != (mine.boot, mine.namespace):
        return None
    return _started(process.pid) == process.started


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink(_NAMESPACE)  # noqa: PTH115  (the link's target is a name, not a path)
    except OSError:
        return ""


def _started(pid: int) -> float | None:
    """When a process started, by a clock that nobody can set; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return float(stat.rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        pass
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
