"""The actor that passes log rows from the training processes to the driver."""

from __future__ import annotations

from typing import Any


class Board:
    """A list of log rows, run as a Ray actor."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def post(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self._rows.append(row)

    def take(self) -> list[dict[str, Any]]:
        """All rows since the last call."""
        rows, self._rows = self._rows, []
        return rows
