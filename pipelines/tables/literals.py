"""SQL literals in filters of Lance: the only place that quotes values."""

from __future__ import annotations

from collections.abc import Iterable


def quoted(value: str) -> str:
    """A string as an SQL literal.

    >>> quoted("it's")
    "'it''s'"
    """
    return "'" + value.replace("'", "''") + "'"


def is_any_of(column: str, values: Iterable[str | int]) -> str:
    """A filter that matches the rows whose column has one of these values.

    Args:
        column: the column's name.
        values: at least one value.

    >>> is_any_of("name", ["b", "a"])
    "name IN ('a', 'b')"
    """
    shown = (quoted(value) if isinstance(value, str) else str(value) for value in sorted(values))
    return f"{column} IN ({', '.join(shown)})"
