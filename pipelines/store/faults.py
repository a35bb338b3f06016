"""Fault points: places where a run can be made to fail, for tests of recovery. Off unless `ISTHMUS_FAULT` is set.

`ISTHMUS_FAULT=POINT[:N][:ACTION]` fails at the N-th pass (default 1) of POINT in a process. ACTION is `raise` (default:
an OSError, as a store would raise), `kill` (the process sends itself SIGKILL), `hang` or `exit`. With
`ISTHMUS_FAULT_ONCE=FILE` the fault happens once across all processes: the first process to fail creates FILE.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

VARIABLE, ONCE_VARIABLE = "ISTHMUS_FAULT", "ISTHMUS_FAULT_ONCE"

POINTS = {
    "read": "in a read task, before a block is passed on",
    "decode": "in a decode task or actor, before a block is decoded",
    "picture": "before a picture is decoded; N is a prefix of its digest",
    "encode": "in an encode actor, before a block is encoded",
    "before_stage": "in a staging task, before anything is written",
    "mid_stage": "in a staging task, after some of the files are written",
    "after_stage": "in a staging task, after all files are written, before the report",
    "before_lease": "in the driver, before the table's lease is taken",
    "after_lease": "in the driver, under the lease, before anything is read",
    "before_rejects": "in the driver, before the rejects of a commit are merged",
    "after_rejects": "in the driver, after the rejects are merged, before the commit",
    "before_commit": "in the driver, right before a commit",
    "after_commit": "in the driver, after a commit, before the ledger's record of it",
    "after_record": "in the driver, after the ledger's record",
    "before_sweep": "in the driver, before the remaining stale rows are removed",
    "before_reject_sweep": "in the driver, after all commits, before rejects that do not count are deleted",
    "before_release": "in the driver, after all work, before the lease is released",
}

_passes: Counter[str] = Counter()


class InjectedFaultError(OSError):
    """Raised by a fault point."""


def fault(point: str, name_here: str | None = None) -> None:
    """Fail here if the environment asks for it.

    Args:
        point: one of `POINTS`.
        name_here: a name for the item at hand. If given, the fault hits the items whose names begin with N.

    Raises:
        InjectedFaultError: the environment asks for a fault at this point.
        ValueError: `ISTHMUS_FAULT` names an unknown point.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    name, _, rest = wanted.partition(":")
    number, _, action = rest.partition(":")
    if name not in POINTS:
        raise ValueError(f"{VARIABLE}={wanted}: unknown fault point; choose from {', '.join(POINTS)}")
    if name != point:
        return
    if name_here is not None:
        if name_here.startswith(number) and _is_first():
            _fail(point, action or "raise")
        return
    _passes[point] += 1
    if _passes[point] == int(number or 1) and _is_first():
        _fail(point, action or "raise")


def fault_is_set(point: str) -> bool:
    """Whether the environment names this point."""
    return os.environ.get(VARIABLE, "").partition(":")[0] == point


def _is_first() -> bool:
    marker = os.environ.get(ONCE_VARIABLE)
    if marker is None:
        return True
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _fail(point: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "hang":
        time.sleep(3600)
    if action == "exit":
        os._exit(1)
    raise InjectedFaultError(f"injected fault at {point}")
