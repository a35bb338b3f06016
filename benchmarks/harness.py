"""Shared parts of the benches: contenders that take turns, medians, goals, and a report that names the machine.

A bench measures *figures* (a rate, seconds, bytes) of contenders. The speed of a machine drifts, so contenders take
turns, round after round. Benches compare the ratio within a round, and report its median over the rounds.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("ray", "lancedb", "pylance", "pyarrow", "torch", "transformers", "openvino", "numpy", "pillow")
Figures = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A goal of a bench, and the measured figure.

    Attributes:
        name: the measured quantity in words, such as `embed, small ViT, 256 px: share of the ceiling`.
        figure: the measured median.
        target: the wanted figure.
        at_least: whether the figure must be at least the target; otherwise, at most.
        note: why the goal was missed, or other facts about the figure.
    """

    name: str
    figure: float
    target: float
    at_least: bool = True
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure reaches the target."""
        return self.figure >= self.target if self.at_least else self.figure <= self.target


def take_turns(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    warmup: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> Figures:
    """Run the contenders in rounds. The order rotates, so that a contender does not always follow the same one.

    Args:
        contenders: name → function that runs the contender once and returns its figure.
        rounds: number of rounds that count.
        warmup: number of rounds before them that do not count.
        say: called with a line about each figure.

    Returns:
        Name → figures, one for each round that counts.
    """
    names = list(contenders)
    figures: Figures = {name: [] for name in names}
    for number in range(-warmup, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            figure = contenders[name]()
            say(f"round {number + 1} of {rounds}, {name}: {figure:.4g}")
            if number >= 0:
                figures[name].append(figure)
    return figures


def ratio(figures: Figures, a: str, b: str) -> float:
    """Median over the rounds of a's figure divided by b's.

    >>> ratio({"a": [2.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}, "a", "b")
    2.0
    """
    return statistics.median(x / y for x, y in zip(figures[a], figures[b], strict=True))


def summary(figures: Figures, digits: int = 4) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum of each contender's figures."""

    def rounded(value: float) -> float:
        return float(f"{value:.{digits}g}")

    return {
        name: {"median": rounded(statistics.median(f)), "min": rounded(min(f)), "max": rounded(max(f))}
        for name, f in figures.items()
        if f
    }


def machine() -> dict[str, Any]:
    """Description of this machine: processor, cores, memory, versions."""
    import psutil  # It may be missing where `benchmarks.gpu` runs.

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table. The keys of the first row are the columns."""
    if not rows:
        return ""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in head) + " |" for row in rows]
    return "\n".join(lines)


def goal_rows(goals: Sequence[Goal]) -> list[dict[str, Any]]:
    """Goals as rows of a table."""
    return [
        {
            "goal": goal.name,
            "wanted": f"{'≥' if goal.at_least else '≤'} {goal.target:g}",
            "measured": f"{goal.figure:.3g}",
            "met": "yes" if goal.met else "**no**",
            "note": goal.note,
        }
        for goal in goals
    ]


def report(name: str, command: str, tables: Mapping[str, Sequence[Mapping[str, Any]]], goals: Sequence[Goal]) -> None:
    """Print the tables and goals as Markdown, and keep them as JSON and Markdown under `benchmarks/results`.

    Args:
        name: name of the bench and of its files.
        command: the command that made the report.
        tables: title → rows.
        goals: the goals with their measured figures.
    """
    result = {
        "bench": name,
        "command": command,
        "machine": machine(),
        "tables": {title: [dict(row) for row in rows] for title, rows in tables.items()},
        "goals": [asdict(goal) | {"met": goal.met} for goal in goals],
    }
    parts = [f"# {name}", f"`{command}`", _machine_line(result["machine"])]
    for title, rows in tables.items():
        parts += [f"## {title}", markdown(rows)]
    if goals:
        parts += ["## Goals", markdown(goal_rows(goals))]
    text = "\n\n".join(parts) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    sys.stdout.write(text)


def _machine_line(found: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB; Python {found['python']}, {versions}"
    )
