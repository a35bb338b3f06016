"""Objects that are made when they are first used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Deferred:
    """Stands for an object that takes long to make, and may never be needed.

    Args:
        make: makes it; called once, by the first use.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make: Callable[[], Any] | None = make
        self._made: Any = None

    def now(self) -> Any:
        """The object itself."""
        if self._make is not None:
            self._made, self._make = self._make(), None
        return self._made

    def __getattr__(self, name: str) -> Any:
        return getattr(self.now(), name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call it."""
        return self.now()(*arguments, **options)
