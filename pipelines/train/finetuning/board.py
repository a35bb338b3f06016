"""Where the training processes put the rows of their log, and the driver takes them."""

from __future__ import annotations

from typing import Any


class Board:
    """A Ray actor with a list."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def post(self, row: dict[str, Any]) -> None:
        """Put a row."""
        self._rows.append(row)

    def take(self) -> list[dict[str, Any]]:
        """All rows since the last time."""
        rows, self._rows = self._rows, []
        return rows
