"""Points at which a run can be made to fail, for tests of recovery. Off unless `ISTHMUS_FAULT` is set.

`ISTHMUS_FAULT=POINT[:N][:ACTION]` fails at the N-th pass (default 1) of POINT in a process. ACTION is `raise` (default:
an OSError, as a store's), `kill` (SIGKILL to the process itself), `hang` or `exit`. With
`ISTHMUS_FAULT_ONCE=FILE` it happens once, whatever the number of processes: the file is made when it does.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

VARIABLE, ONCE_VARIABLE = "ISTHMUS_FAULT", "ISTHMUS_FAULT_ONCE"

POINTS = {
    "read": "in a read task, before a block is given on",
    "decode": "in a decode task or actor, before a block is decoded",
    "picture": "before a picture is decoded; N is the beginning of its digest",
    "encode": "in an encode actor, before a block is encoded",
    "before_stage": "in a staging task, before anything is written",
    "mid_stage": "in a staging task, when a part of the files is written",
    "after_stage": "in a staging task, when all is written and nothing reported",
    "before_lease": "in the driver, before the table's lease is taken",
    "after_lease": "in the driver, under the lease, before anything is read",
    "before_rejects": "in the driver, before the rejects of a commit are merged",
    "after_rejects": "in the driver, after them, before the commit",
    "before_commit": "in the driver, right before a commit",
    "after_commit": "in the driver, after a commit, before the ledger's record of it",
    "after_record": "in the driver, after the record",
    "before_sweep": "in the driver, before stale rows leave, their rejects gone",
    "before_release": "in the driver, all done, the lease still held",
}

_passes: Counter[str] = Counter()


class InjectedFaultError(OSError):
    """What a fault point raises."""


def fault(point: str, name_here: str | None = None) -> None:
    """Fail here, if the environment says so.

    Args:
        point: one of `POINTS`.
        name_here: of what is passed; the fault is then for what has a name that begins with N.

    Raises:
        InjectedFaultError: the environment asks for it.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    name, _, rest = wanted.partition(":")
    number, _, action = rest.partition(":")
    if name not in POINTS:
        raise ValueError(f"{VARIABLE}={wanted}: no such point; the points are {', '.join(POINTS)}")
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
