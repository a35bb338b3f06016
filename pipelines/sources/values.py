"""Types for loosely typed values (JSON fields, cells): determined once for the corpus, then applied to every value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

_LIST = "list:"
_INT64 = range(-(1 << 63), 1 << 63)


class TypeTally:
    """Collects the kinds of values in each field, in the order in which the fields first occur.

    >>> tally = TypeTally()
    >>> tally.add({"a": 1, "b": [True], "c": "x"})
    >>> tally.add({"a": 2.5, "b": [], "c": {"d": 1}})
    >>> [str(field.type) for field in tally.schema()]
    ['double', 'list<item: bool>', 'string']
    """

    def __init__(self) -> None:
        self._kinds: dict[str, set[str]] = {}

    def add(self, fields: Mapping[str, Any]) -> None:
        """Add the fields of one record."""
        for name, value in fields.items():
            self._kinds.setdefault(name, set()).update(_kinds_of(value))

    def names(self) -> list[str]:
        """The fields seen so far."""
        return list(self._kinds)

    def schema(self, without: Iterable[str] = ()) -> pa.Schema:
        """The narrowest types that hold the values seen so far; strings (JSON if necessary) for mixtures.

        The type of a field without any value is null, and that of lists without any item `list<null>`.

        Args:
            without: fields to leave out.
        """
        left_out = set(without)
        return pa.schema([(name, _type_of(kinds)) for name, kinds in self._kinds.items() if name not in left_out])


def fit(value: Any, kind: pa.DataType) -> Any:
    """The value converted to its column's type: JSON if the column is text, None if it does not fit."""
    if value is None or pa.types.is_null(kind):
        return None
    if pa.types.is_string(kind):
        return as_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    if pa.types.is_list(kind):
        return [fit(item, kind.value_type) for item in value] if isinstance(value, list) else None
    if pa.types.is_boolean(kind):
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if pa.types.is_floating(kind):
        return float(value) if isinstance(value, float) or value in _INT64 else None
    return value if isinstance(value, int) and value in _INT64 else None


def fit_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of `schema`. Fields that the schema lacks are dropped; missing ones become null."""
    arrays = [pa.array([fit(row.get(field.name), field.type) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def as_text(text: str) -> str:
    """The string in a form that UTF-8 can hold. JSON may escape half of a surrogate pair, which Arrow rejects.

    >>> as_text("caf\\u00e9 \\ud800")
    'café ?'
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _kinds_of(value: Any) -> set[str]:
    if value is None:
        return set()
    if isinstance(value, list):
        return {_LIST + kind for item in value for kind in _kinds_of(item)} or {_LIST}
    if isinstance(value, int) and not isinstance(value, bool) and value not in _INT64:
        return {"other"}
    return {type(value).__name__}


def adopted(guessed: pa.Schema, table: pa.Schema) -> pa.Schema:
    """The fields with a table's types, where these keep every value: text, or any type if no value was seen.

    Args:
        guessed: fields whose types were guessed from the values of this corpus.
        table: the schema of the table that the values go to.
    """
    known = {field.name: field.type for field in table}
    return pa.schema([(field.name, _adopted(field.type, known.get(field.name))) for field in guessed])


def _adopted(guessed: pa.DataType, known: pa.DataType | None) -> pa.DataType:
    loose = None if known is None else _loose(known)
    if loose is None:
        return guessed
    if pa.types.is_list(guessed) and pa.types.is_list(loose):
        return pa.list_(_adopted(guessed.value_type, loose.value_type))
    return loose if pa.types.is_string(loose) or pa.types.is_null(guessed) else guessed


def _loose(known: pa.DataType) -> pa.DataType | None:
    """The type of loosely typed values that comes nearest to a table's type; None if none does."""
    if pa.types.is_list(known) or pa.types.is_large_list(known):
        inner = _loose(known.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_string(known) or pa.types.is_large_string(known):
        return pa.string()
    if pa.types.is_integer(known):
        return pa.int64()
    if pa.types.is_floating(known):
        return pa.float64()
    return known if pa.types.is_boolean(known) else None


def without_null_types(schema: pa.Schema) -> pa.Schema:
    """The fields with text in place of unknown types: text holds whatever values may come."""
    return pa.schema([(field.name, _known(field.type)) for field in schema])


def _known(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_known(kind.value_type))
    return pa.string() if pa.types.is_null(kind) else kind


def _type_of(kinds: set[str]) -> pa.DataType:
    if not kinds:
        return pa.null()
    if all(kind.startswith(_LIST) for kind in kinds):
        return pa.list_(_type_of({kind.removeprefix(_LIST) for kind in kinds} - {""}))
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds == {"int"}:
        return pa.int64()
    return pa.float64() if kinds <= {"int", "float"} else pa.string()
