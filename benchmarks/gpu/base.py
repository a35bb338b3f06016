"""What all parts share: rows of results, steps, and what a step is told."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

Status = Literal["done", "wrong", "failed", "skipped"]
_T = TypeVar("_T")
_MINIATURE = 0.05  # share of a step's time on a GPU that it takes in miniature, at least


class Skip(Exception):  # noqa: N818
    """Raised by a step that cannot run on this machine; says why."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
        what: what was measured, in words.
        figure: the value; None where there is none.
        unit: of the figure.
        target: what it should be; None for a figure without a goal.
        at_least: whether a greater figure is better.
        status: `wrong` is a check that did not hold, `failed` an exception, `skipped` says why in the note.
        note: what else must be known.
    """

    what: str
    figure: float | str | None = None
    unit: str = ""
    target: float | None = None
    at_least: bool = True
    status: Status = "done"
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is at its target or beyond; not for a figure that is no number."""
        if self.target is None or not isinstance(self.figure, float):
            return False
        return self.figure >= self.target if self.at_least else self.figure <= self.target


def goal(what: str, figure: float, target: float, *, at_least: bool = True, unit: str = "", note: str = "") -> Row:
    """A figure with a goal that may be missed."""
    return Row(what=what, figure=float(figure), unit=unit, target=target, at_least=at_least, note=note)


def check(what: str, figure: float, target: float, *, at_least: bool = True, note: str = "") -> Row:
    """A figure with a bound that must hold."""
    row = goal(what, figure, target, at_least=at_least, note=note)
    return row if row.met else Row(**{**vars(row), "status": "wrong"})


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a step is told.

    Attributes:
        device: `cuda`, or `cpu` for the miniature.
        folder: where model directories are kept.
        ends_at: when the part should be over, by `time.monotonic`.
    """

    device: str
    folder: Path
    ends_at: float = math.inf

    @property
    def left_s(self) -> float:
        """Seconds that the part has left."""
        return self.ends_at - time.monotonic()

    def pick(self, on_gpu: _T, miniature: _T) -> _T:
        """The size for a GPU, or that of the miniature."""
        return on_gpu if self.device == "cuda" else miniature


@dataclass(frozen=True, kw_only=True)
class Step:
    """A part of a part, which may fail alone.

    Attributes:
        name: in words.
        run: measures; gives rows as it goes.
        least_s: what it takes at least on a GPU.
        cuda_only: whether it says nothing on a CPU.
    """

    name: str
    run: Callable[[Bench], Iterable[Row]]
    least_s: float = 1.0
    cuda_only: bool = False


def run_steps(steps: Sequence[Step], bench: Bench) -> Iterator[Row]:
    """The rows of all steps. One that fails, or has no time, leaves a row that says so."""
    for step in steps:
        yield from _rows(step, bench)


def _rows(step: Step, bench: Bench) -> Iterator[Row]:
    needed = step.least_s * bench.pick(1.0, _MINIATURE)
    if step.cuda_only and bench.device != "cuda":
        yield _skipped(step, "CUDA only")
        return
    if bench.left_s < needed:
        yield _skipped(step, f"takes {needed:.2g} s at least, and {max(bench.left_s, 0):.2g} s are left")
        return
    try:
        for row in step.run(bench):
            yield row
            if bench.left_s < 0:
                yield _skipped(step, "the rest: its time was up")
                return
    except Skip as reason:
        yield _skipped(step, str(reason))
    except Exception as error:
        traceback.print_exc()
        yield Row(what=step.name, status="failed", note=one_line(error))


def one_line(error: BaseException) -> str:
    """The error's type and the first line of its message, fit for a table."""
    lines = (line.strip() for line in str(error).splitlines())
    first = next((line for line in lines if line), "")
    return f"{type(error).__name__}: {first}"[:300].replace("|", "/")


def _skipped(step: Step, why: str) -> Row:
    return Row(what=step.name, status="skipped", note=why)
