"""No history of a table, by whatever tools, loses or doubles a record.

`ISTHMUS_HISTORY_STEPS=10000 pytest -m slow tests/e2e/test_any_history.py` takes that many steps.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from histories import History, InlineEngine

from pipelines.ingest import embed

pytestmark = pytest.mark.slow
_STEPS = 12
_ALL_STEPS = int(os.environ.get("ISTHMUS_HISTORY_STEPS", "300"))
_FIRST_SEED = int(os.environ.get("ISTHMUS_HISTORY_SEED", "0"))
# Histories that once went wrong.
_KEPT: tuple[int, ...] = ()
_DEEDS = (
    *("embed", "embed", "sync", "sync", "kill", "kill", "kill", "two_drivers", "retry", "maintain", "set_clock"),
    *("add_file", "add_file", "rewrite_file", "remove_file", "rename_file", "move_corpus"),
    *("user", "user", "user", "user", "drop", "restore", "restore", "copy", "damage"),
)


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(embed, "_choose_engine", lambda settings, reserve: InlineEngine())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("seed", [*_KEPT, *range(_FIRST_SEED, _FIRST_SEED + _ALL_STEPS // _STEPS)])
def test_a_history_loses_and_doubles_nothing(tmp_path: Path, seed: int) -> None:
    history = History(tmp_path, seed)
    history.add_file()
    try:
        with history.clock():
            for _ in range(_STEPS):
                deed = history.random.choice(_DEEDS)
                history.log.append(deed)
                getattr(history, deed)()
            history.log.append("embed, sync at the end")
            history.embed()
            history.sync()
    except Exception as error:
        error.add_note("\n".join([f"seed {seed}", *history.log]))
        raise
