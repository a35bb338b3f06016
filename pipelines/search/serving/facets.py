"""The filters that a page can offer for a table's columns, and the SQL of the chosen ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.rows.contract import CAPTION, IMAGE_URI, INTERNAL, ITEM_ID, ROW_ID, THUMBNAIL, VECTORS
from pipelines.tables.filters import quote

if TYPE_CHECKING:
    import lance

FacetKind = Literal["choice", "range", "text"]
Operation = Literal["is", "at_least", "at_most", "contains"]
_NO_FACETS = {ROW_ID, ITEM_ID, CAPTION, IMAGE_URI, *VECTORS, THUMBNAIL, *INTERNAL}
_SAMPLED_ROWS = 20_000
_MOST_CHOICES = 30


@dataclass(frozen=True, kw_only=True)
class Facet:
    """A column that can be filtered, and how.

    Attributes:
        column: the column's name.
        kind: `choice` among `values`, a `range` from `low` to `high`, or any `text`.
        values: values of a choice, the most frequent first.
        low: the lowest value in the sample, for a range.
        high: the highest value in the sample, for a range.
    """

    column: str
    kind: FacetKind
    values: tuple[str, ...] = ()
    low: float | str | None = None
    high: float | str | None = None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A filter that a user chose.

    Attributes:
        column: the column to filter.
        operation: the comparison.
        value: the value to compare with; a number for columns of numbers.
    """

    column: str
    operation: Operation
    value: str | float | bool


def facets(dataset: lance.LanceDataset) -> list[Facet]:
    """The facets of a table, from the columns' types and their values in the first 20,000 rows."""
    usable = [field for field in dataset.schema if field.name not in _NO_FACETS and _is_plain(field.type)]
    if not usable:
        return []
    sample = dataset.scanner(columns=[field.name for field in usable], limit=_SAMPLED_ROWS).to_table()
    return [_facet(field, sample[field.name].combine_chunks()) for field in usable]


def _facet(field: pa.Field, values: pa.Array) -> Facet:
    if pa.types.is_boolean(field.type):
        return Facet(column=field.name, kind="choice", values=("true", "false"))
    if _is_number(field.type) or pa.types.is_temporal(field.type):
        bounds = pc.min_max(values).as_py()
        return Facet(column=field.name, kind="range", low=_shown(bounds["min"]), high=_shown(bounds["max"]))
    counts = sorted(pc.value_counts(values.drop_null()).to_pylist(), key=lambda c: (-c["counts"], c["values"]))
    if 0 < len(counts) <= _MOST_CHOICES:
        return Facet(column=field.name, kind="choice", values=tuple(str(c["values"]) for c in counts))
    return Facet(column=field.name, kind="text")


def condition(dataset: lance.LanceDataset, chosen: Sequence[Chosen]) -> str | None:
    """The filters as one SQL expression; None if there are none.

    Raises:
        ValueError: a column does not exist or does not allow the operation, or a value does not have the column's type.
    """
    return " AND ".join(_sql(dataset, one) for one in chosen) or None


def _sql(dataset: lance.LanceDataset, chosen: Chosen) -> str:
    names = [field.name for field in dataset.schema if field.name not in INTERNAL and _is_plain(field.type)]
    if chosen.column not in names:
        raise ValueError(f"filter: no column {chosen.column!r}; columns are {', '.join(names)}")
    kind = dataset.schema.field(chosen.column).type
    column = "`" + chosen.column.replace("`", "") + "`"
    if chosen.operation == "contains":
        if not _is_text(kind):
            raise ValueError(f"filter {chosen.column}: contains needs a column of text, not {kind}")
        return f"contains(lower({column}), {quote(str(chosen.value).lower())})"
    sign = {"is": "=", "at_least": ">=", "at_most": "<="}[chosen.operation]
    return f"{column} {sign} {_literal(chosen, kind)}"


def _literal(chosen: Chosen, kind: pa.DataType) -> str:
    value = chosen.value
    try:
        if pa.types.is_boolean(kind):
            return {"true": "true", "false": "false"}[str(value).lower()]
        if _is_number(kind):
            number = float(value)
            if not math.isfinite(number):
                raise ValueError(value)
            return repr(int(number)) if number.is_integer() else repr(number)
        if pa.types.is_date(kind):
            return f"date '{date.fromisoformat(str(value)[:10])}'"
        if pa.types.is_timestamp(kind):
            return f"timestamp '{datetime.fromisoformat(str(value)):%Y-%m-%d %H:%M:%S}'"
    except (ValueError, KeyError, OverflowError):
        raise ValueError(f"filter {chosen.column}: {value!r} is not a {kind}") from None
    return quote(str(value))


def _is_plain(kind: pa.DataType) -> bool:
    return bool(_is_number(kind) or pa.types.is_boolean(kind) or _is_text(kind) or _is_day(kind))


def _is_day(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _shown(value: Any) -> float | str | None:
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    return value if value is None or isinstance(value, (int, str)) else (value if math.isfinite(value) else None)
