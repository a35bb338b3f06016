"""No history of a table, by whatever tools, loses or doubles a record.

The quick tests take 60 steps, `make test-all` 300, and `make test-histories` 10,000.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from histories import History, InlineEngine

from pipelines.ingest import embed

_STEPS = 12
_ALL_STEPS = int(os.environ.get("ISTHMUS_HISTORY_STEPS", "300"))
_FIRST_SEED = int(os.environ.get("ISTHMUS_HISTORY_SEED", "0"))
# Histories that once lost or doubled a record: of a lost ledger, a renamed file with changes, a restored table.
_KEPT = (2, 30, 36, 38, 62, 80)
_QUICK = 5
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


def _seeds() -> Iterator[Any]:
    for n, seed in enumerate(dict.fromkeys([*range(_FIRST_SEED, _FIRST_SEED + _ALL_STEPS // _STEPS), *_KEPT])):
        yield pytest.param(seed, marks=() if n < _QUICK else pytest.mark.slow)


@pytest.mark.parametrize("seed", _seeds())
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
