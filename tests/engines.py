"""Options that run a test's jobs on one engine or the other; see the fixture `engine`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {"ray": {"engine": "ray", "actors": 1}, "process": {"engine": "process"}}
_turns = ["ray"]


@contextmanager
def turn_of(engine: str) -> Iterator[None]:
    """Jobs with `on_engine()` run on this engine."""
    _turns.append(engine)
    yield
    _turns.pop()


def on_engine() -> dict[str, Any]:
    """Options of a job for the current engine."""
    return OPTIONS[_turns[-1]]
