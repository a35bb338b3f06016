"""Independent parts of the server: its storage is bounded, and it knows when it is stuck."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
from fastapi import HTTPException

from pipelines.search.serving import steps as module
from pipelines.search.serving.app import ServeSettings
from pipelines.search.serving.row_images import HeldPictures
from pipelines.search.serving.steps import Steps


def held(store: HeldPictures) -> set[str]:
    """Which of the names a to e are held; asking also makes them the newest, in this order."""
    found = set()
    for name in "abcde":
        try:
            store.get(name)
            found.add(name)
        except KeyError:
            pass
    return found


def test_pictures_beyond_a_number_or_their_bytes_push_out_what_nobody_asked_for() -> None:
    store = HeldPictures(most=3, most_bytes=100)
    for name in "abc":
        store.put(name, b"x")
    store.get("a")
    store.put("d", b"x")
    assert held(store) == {"a", "c", "d"}
    store.put("e", b"x" * 99)
    assert held(store) == {"d", "e"}, "by bytes"
    store.put("e", b"x" * 99)
    assert held(store) == {"d", "e"}, "the same again takes no room"
    store.put("a", b"x" * 101)
    assert held(store) == set(), "what can never fit is not held either"


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("v"), 400), (KeyError("k"), 404), (PermissionError("p"), 403), (ConnectionError("c"), 502)],
)
def test_what_is_wrong_has_its_status(error: Exception, status: int) -> None:
    def failing() -> None:
        raise error

    with pytest.raises(HTTPException) as caught:
        anyio.run(Steps(5.0).run, failing)
    assert caught.value.status_code == status


def test_a_server_is_stuck_when_no_slot_has_moved_for_several_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stuck replica is replaced. A busy one must not be, or load would kill every replica."""
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    steps, release = Steps(10.0), threading.Event()
    started = threading.Semaphore(0)

    def hang() -> None:
        started.release()
        release.wait(30)

    def run(step: Callable[[], None]) -> None:
        steps._in_slot(step)

    with ThreadPoolExecutor(4) as pool:
        hung = [pool.submit(run, hang) for _ in range(3)]
        for _ in hung:
            assert started.acquire(timeout=10)
        clock[0] = 1_000.0
        assert not steps.is_stuck(), "one slot is free"
        hung.append(pool.submit(run, hang))
        assert started.acquire(timeout=10)
        assert not steps.is_stuck(), "the last one has only begun"
        clock[0] = 1_041.0
        assert steps.is_stuck()
        release.set()
        for one in hung:
            one.result(10)
    assert not steps.is_stuck()


def test_settings_can_be_printed_without_the_token() -> None:
    assert "sesame" not in repr(ServeSettings(token="sesame"))
