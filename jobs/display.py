"""Display of reports and progress in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from jobs.config import Report

_CELL_CHARS = 60
_TRAINING_ROWS = 12


@contextmanager
def row_progress(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress line on standard error. The callback takes (rows done, total rows or None)."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows · {task.fields[rate]} rows/s"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None, rate="–")

        def update(done: int, total: int | None) -> None:
            elapsed = progress.tasks[0].elapsed or 0.0
            progress.update(task, completed=done, total=total, rate=f"{done / elapsed:.0f}" if elapsed else "–")

        yield update


@contextmanager
def training_table() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A live table of the latest steps and validations on standard error. The callback takes a row of the log."""
    from rich.live import Live

    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    with Live(console=console, transient=True, auto_refresh=console.is_terminal) as live:

        def update(row: dict[str, Any]) -> None:
            rows.append(row)
            if console.is_terminal:
                live.update(_training_rows(rows[-_TRAINING_ROWS:]))

        yield update


def _training_rows(rows: list[dict[str, Any]]) -> Table:
    names = ("step", "epoch", "loss", "scale", "pairs_per_s", "R@1", "R@10")
    table = Table(*names, header_style="bold", box=None, pad_edge=False)
    for row in rows:
        shown = {**row, **row.get("validation", {})}
        table.add_row(*(_number(shown.get(name)) for name in names))
    return table


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def say(line: str) -> None:
    """Print a line about the current step to standard error."""
    # Names and errors may contain brackets, which rich would read as markup.
    Console(stderr=True).print(Text.assemble(("·", "bold"), " ", line))


def render(report: Report) -> RenderableType:
    """A report as tables: first its plain values, then each list of rows."""
    if hasattr(report, "__rich__"):
        return report  # type: ignore[return-value]
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    parts: list[RenderableType] = [facts]
    for name, value in report.to_dict().items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            parts += [Text(f"\n{name}", style="bold"), rows_table(value)]
        elif value not in (None, {}, []):
            facts.add_row(name.replace("_", " "), _cell(value, limit=None))
    return Group(*parts)


def rows_table(rows: list[dict[str, Any]]) -> Table:
    """A table of dictionaries with equal keys. Long cells are cut."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value, limit=_CELL_CHARS) for value in row.values()))
    return table


def _cell(value: Any, *, limit: int | None) -> str:
    if isinstance(value, dict):
        text = ", ".join(f"{key} {_cell(item, limit=None)}" for key, item in value.items())
    elif isinstance(value, list):
        text = ", ".join(str(item) for item in value)
    elif isinstance(value, float):
        text = f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    else:
        text = "" if value is None else str(value)
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def size_text(count: float) -> str:
    """A number of bytes with a decimal unit, such as `1.5 GB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
