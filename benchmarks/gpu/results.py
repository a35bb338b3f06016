"""The results of a run, as JSON and Markdown: written with each row, so that a killed run keeps what it had."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.base import Row
from benchmarks.harness import markdown

_STATUSES = ("failed", "wrong", "done", "skipped")


@dataclass(kw_only=True)
class PartResult:
    """What a part has found so far."""

    about: str
    rows: list[Row] = field(default_factory=list)
    seconds: float | None = None

    @property
    def status(self) -> str:
        """The worst of its rows; `running` while it does; `skipped` where all were."""
        if self.seconds is None:
            return "running"
        found = {row.status for row in self.rows}
        return next((status for status in _STATUSES if status in found), "skipped")


@dataclass(kw_only=True)
class Results:
    """The results of all parts, and the files that hold them."""

    folder: Path
    command: str
    device: str
    parts: dict[str, PartResult] = field(default_factory=dict)
    finished: bool = False

    @property
    def failed(self) -> list[str]:
        """Parts that failed, or whose checks did not hold."""
        return [name for name, part in self.parts.items() if part.status in ("failed", "wrong")]

    def figure(self, what: str) -> float | None:
        """A figure by its words, from whatever part; None where it was not measured."""
        rows = (row for part in self.parts.values() for row in part.rows)
        return next((row.figure for row in rows if row.what == what and isinstance(row.figure, float)), None)

    def write(self) -> None:
        """Write both files; each is there wholly or as it was."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / "gpu.json", json.dumps(self._data(), indent=1, ensure_ascii=False) + "\n")
        _replace(self.folder / "gpu.md", self.markdown())

    def markdown(self) -> str:
        """The run as a page."""
        blocks = ["# gpu", f"`{self.command}`"]
        if self.device != "cuda":
            blocks.append("**In miniature, on a CPU**: tiny models. It shows that the script runs, and no speed.")
        if not self.finished:
            blocks.append("**Not finished**: this is what there was when the run ended or was killed.")
        summary = [
            {"part": name, "status": part.status, "seconds": "" if part.seconds is None else f"{part.seconds:.0f}"}
            for name, part in self.parts.items()
        ]
        blocks += ["## Parts", markdown(summary)]
        for name, part in self.parts.items():
            blocks += [f"## {name}: {part.about}", markdown([_cells(row) for row in part.rows])]
        return "\n\n".join(blocks) + "\n"

    def _data(self) -> dict[str, Any]:
        goals = [_goal(row) for part in self.parts.values() for row in part.rows if row.target is not None]
        return {
            "bench": "gpu",
            "command": self.command,
            "device": self.device,
            "finished": self.finished,
            "parts": {name: _part(part) for name, part in self.parts.items()},
            "goals": [found for found in goals if found["figure"] is not None],
        }


def _part(part: PartResult) -> dict[str, Any]:
    rows = [{**asdict(row), "figure": _finite(row.figure)} for row in part.rows]
    return {"status": part.status, "seconds": part.seconds, "rows": rows}


def _goal(row: Row) -> dict[str, Any]:
    """As `benchmarks.summary` reads it."""
    return {
        "name": row.what,
        "figure": _finite(row.figure),
        "target": row.target,
        "at_least": row.at_least,
        "note": row.note,
        "met": row.met,
    }


def _finite(figure: float | str | None) -> float | str | None:
    return None if isinstance(figure, float) and not math.isfinite(figure) else figure


def _cells(row: Row) -> Mapping[str, str]:
    wanted = "" if row.target is None else f"{'≥' if row.at_least else '≤'} {row.target:g}"
    met = "" if row.target is None else ("yes" if row.met else "**no**")
    shown = f"{row.figure:.6g}" if isinstance(row.figure, float) else str(row.figure or "")
    status = "" if row.status == "done" else f"**{row.status}** "
    cells = {"what": row.what, "figure": f"{shown} {row.unit}".strip(), "wanted": wanted, "met": met}
    return cells | {"note": f"{status}{row.note}".strip()}


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
