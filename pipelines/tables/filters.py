"""Checks `--where`: exactly one filter expression.

Lance parses `SELECT 1 FROM t WHERE <filter>` and ignores whatever follows the expression (`limit 3`, `) or (1=1`, any
words). It also reads "name" as a string, not as a column. So this module checks that the filter is one expression with
balanced parentheses. Lance then plans it inside parentheses, which checks names and types without reading a row.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lance

_STRING_OR_REST = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`")
_DOUBLE_QUOTED = re.compile(r"'(?:[^']|'')*'|`[^`]*`|\"((?:[^\"]|\"\")*)\"")
_FORBIDDEN = {";": "a semicolon", "--": "a comment", "/*": "a comment"}
_NOISE = re.compile(r",?\s*/[\w./-]+\.rs:\d+:\d+.*$|^Invalid user input: |^LanceError\([^)]*\): ", re.DOTALL)


def check_filter(where: str, dataset: lance.LanceDataset) -> str:
    """The filter, if it is one boolean expression over the table's columns.

    Raises:
        ValueError: names the problem and lists the table's columns. No row was read.
    """
    outside = _STRING_OR_REST.sub("''", where)
    if outside.count("'") % 2:
        raise ValueError(
            _message(where, "a quote is not closed (write a quote within a string twice: 'it''s')", dataset)
        )
    for mark, name in _FORBIDDEN.items():
        if mark in outside:
            raise ValueError(_message(where, f"holds {name}; give one filter expression", dataset))
    if not _closes_its_parentheses(outside):
        raise ValueError(_message(where, "its parentheses do not match", dataset))
    for column in (name for name in _DOUBLE_QUOTED.findall(where) if name in dataset.schema.names):
        problem = f'"{column}" in double quotes is a string and not the column; write `{column}`'
        raise ValueError(_message(where, problem, dataset))
    if not outside.strip():
        raise ValueError(_message(where, "is empty; give one filter expression", dataset))
    try:
        dataset.scanner(filter=f"({where})", limit=1).explain_plan()
    except (ValueError, OSError) as error:
        raise ValueError(_message(where, _clean(str(error)), dataset)) from error
    return where


def _closes_its_parentheses(outside: str) -> bool:
    """Whether parentheses balance. A stray `)` would close the parentheses that are put around the filter."""
    depth = 0
    for character in outside:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0


def quote(value: str) -> str:
    """The value as an SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


def _message(where: str, problem: str, dataset: lance.LanceDataset) -> str:
    return f"where {where!r}: {problem}; columns are {', '.join(dataset.schema.names)}"


def _clean(text: str) -> str:
    """Lance's message without its source paths and without the names of internal columns."""
    for _ in range(3):
        text = _NOISE.sub("", text)
    return text.split(" Valid fields are")[0].rstrip(". ")
