"""Runs the work of requests in threads, a few at a time, each within a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
from fastapi import HTTPException

T = TypeVar("T")
_SLOTS, _WAITING = 4, 64
_STUCK_LIMITS = 4.0


class Steps:
    """Runs steps of work for requests.

    Lance and the encoder cannot be interrupted, so a step that exceeds the limit holds its slot until it ends.
    """

    def __init__(self, time_limit_s: float) -> None:
        """Set up four slots.

        Args:
            time_limit_s: a request fails if its step takes longer than this many seconds.
        """
        self._limit_s = time_limit_s
        self._slots = threading.BoundedSemaphore(_SLOTS)
        self._threads = anyio.CapacityLimiter(_WAITING)
        self._running: dict[object, float] = {}
        self._lock = threading.Lock()

    async def run(self, step: Callable[[], T]) -> T:
        """The result of a step. Errors become HTTP errors.

        Raises:
            HTTPException: the step took too long (504) or raised (400, 403, 404, 502).
        """
        try:
            with anyio.fail_after(self._limit_s):
                return await anyio.to_thread.run_sync(
                    lambda: self._in_slot(step), limiter=self._threads, abandon_on_cancel=True
                )
        except TimeoutError:
            raise HTTPException(504, f"took longer than {self._limit_s:g} s; ask for less") from None
        except PermissionError as error:
            raise HTTPException(403, str(error)) from None
        except (KeyError, FileNotFoundError) as error:
            raise HTTPException(404, f"not found: {error.args[0] if error.args else ''}") from None
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        except OSError as error:
            raise HTTPException(502, f"the picture's store failed: {type(error).__name__}") from None

    def is_stuck(self) -> bool:
        """Whether every slot has been held for over four time limits, so that nothing will be answered any more."""
        with self._lock:
            began = list(self._running.values())
        return len(began) == _SLOTS and time.monotonic() - max(began) > _STUCK_LIMITS * self._limit_s

    def _in_slot(self, step: Callable[[], T]) -> T:
        if not self._slots.acquire(timeout=self._limit_s):
            raise TimeoutError
        key = object()
        try:
            with self._lock:
                self._running[key] = time.monotonic()
            return step()
        finally:
            with self._lock:
                self._running.pop(key, None)
            self._slots.release()
