"""A bench that computes its ratios wrongly misleads for longer than a slow line of code."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import pytest

from benchmarks import summary
from benchmarks.harness import Goal, goal_rows, markdown, ratio, take_turns
from benchmarks.harness import summary as medians

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")


def test_contenders_take_turns_and_none_always_follows_the_same_one() -> None:
    order: list[str] = []

    def contender(name: str) -> float:
        order.append(name)
        return float(len(order))

    figures = take_turns({name: (lambda name=name: contender(name)) for name in "abc"}, rounds=3, warmup=1)
    assert [len(found) for found in figures.values()] == [3, 3, 3], "the warm-up does not count"
    rounds = ["".join(order[i : i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert {turn[0] for turn in rounds[1:]} == {"a", "b", "c"}, "each begins a round"


def test_a_ratio_is_taken_within_the_rounds() -> None:
    """A machine that is ten times slower in one round must not change the result."""
    assert ratio({"a": [2.0, 20.0, 2.0], "b": [1.0, 10.0, 1.0]}, "a", "b") == 2.0
    assert medians({"a": [3.0, 1.0, 2.0]}) == {"a": {"median": 2.0, "min": 1.0, "max": 3.0}}


@pytest.mark.parametrize(("figure", "at_least"), itertools.product([0.9, 1.0, 1.1], [True, False]))
def test_goals_are_met_at_their_target_and_on_its_right_side(figure: float, at_least: bool) -> None:
    goal = Goal(name="n", figure=figure, target=1.0, at_least=at_least)
    assert goal.met == (figure >= 1.0 if at_least else figure <= 1.0)
    assert goal_rows([goal])[0]["met"] == ("yes" if goal.met else "**no**")
    assert markdown(goal_rows([goal])).count("\n") == 2


@pytest.mark.parametrize("name", NAMES)
def test_each_bench_can_be_imported(name: str) -> None:
    """Packages outside the tests' environment are imported only when they are used."""
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_the_readme_shows_the_goals_as_they_were_measured_last() -> None:
    readme = summary.README.read_text()
    assert summary.with_goals(readme, summary.render(summary.read_results())) == readme, (
        "run `python -m benchmarks.summary`"
    )
