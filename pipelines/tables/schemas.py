"""Whether the rows of a corpus fit a table: refused before any work, with column, types and remedy.

A value that a column of another type holds without loss is cast when it is staged. A column that held no value so far
gets its type from the first corpus that has one; see `retyping`.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from pipelines.rows.contract import FUSED_VECTOR, PICTURE, RESERVED, RETYPED_PREFIX, ROW_ID, TEXT
from pipelines.rows.types import (
    children,
    filled,
    has_unknown,
    holds,
    is_list_view,
    is_number,
    is_of_fixed_size,
    is_text,
    may_fit,
)
from pipelines.store.storage import TableRef
from pipelines.tables.provenance import Provenance

# Columns that a table may lack: older tables do. Without them, updating the table is only slower.
OPTIONAL = frozenset({PICTURE, TEXT})
# Columns that each row has, or that are computed from it.
_FILLED = frozenset({ROW_ID, FUSED_VECTOR})


def check_storable(wanted: pa.Schema, corpus: str) -> None:
    """Reject columns that Lance cannot store, before a table is made that no row can be written to.

    Raises:
        ValueError: names corpus, column, type and remedy.
    """
    for column in wanted:
        if problem := storing_problem(column.type):
            raise ValueError(
                f"corpus {corpus}: column {column.name!r} is {column.type}; Lance cannot store {problem}: "
                "write the column in another type, as text for example, or leave it out"
            )


def storing_problem(kind: pa.DataType) -> str | None:
    """What of a type Lance cannot store; None if it stores every value and reads it back.

    >>> storing_problem(pa.list_(pa.string(), 2))
    'fixed_size_list<item: string>[2]'
    """
    return str(kind) if _is_unstorable(kind) else next(filter(None, map(storing_problem, children(kind))), None)


def _is_unstorable(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_fixed_size_list(kind):
        return not is_of_fixed_size(kind)
    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return not names or len(set(names)) < len(names)
    checks = (types.is_union, types.is_interval, types.is_run_end_encoded, types.is_decimal32, types.is_decimal64)
    return is_list_view(kind) or any(check(kind) for check in checks)


def check_schema(
    existing: pa.Schema,
    wanted: pa.Schema,
    table: TableRef,
    corpus: str = "given",
    is_empty: Callable[[str], bool] = lambda column: False,
) -> dict[str, pa.DataType]:
    """Reject rows that do not fit the existing table.

    Args:
        existing: the table's schema.
        wanted: the schema that the corpus would give a new table.
        table: the table, for messages.
        corpus: the corpus as the user named it, for messages.
        is_empty: whether a column of the table holds no value; asked only if its type does not fit.

    Returns:
        Column → type, for the columns that must change their type first, since they hold no value yet.

    Raises:
        EncoderMismatchError: another encoder made the table's vectors.
        ValueError: a column is missing from the table, has a type there that loses values, or cannot be null.
    """
    there, new = Provenance.from_schema(existing, str(table)), Provenance.from_schema(wanted)
    there.check_same_encoder(new.encoder, str(table))
    existing = resumed(existing)
    _check_nulls(existing, wanted, table, corpus)
    retyped: dict[str, pa.DataType] = {}
    for column in wanted:
        if existing.get_field_index(column.name) < 0:
            if column.name in OPTIONAL:
                continue
            raise ValueError(
                f"table {table}: has no column {column.name!r} ({column.type}) of corpus {corpus}; "
                "embed into a new table, or drop the column from the corpus"
            )
        found = existing.field(column.name).type
        kind = _fitting_type(found, column, is_empty)
        if kind is None:
            raise ValueError(
                f"corpus {corpus}: column {column.name!r} is {column.type}, but {found} in table {table}; "
                f"{remedy(column.name, column.type, found)}"
            )
        if kind != found:
            retyped[column.name] = kind
    return retyped


def resumed(existing: pa.Schema) -> pa.Schema:
    """The schema as if a change of type that a killed job began had not begun, or had ended; see `retyping`."""
    fields = []
    for field in existing:
        name = field.name.removeprefix(RETYPED_PREFIX)
        if name == field.name:
            fields.append(field)
        elif name not in existing.names:
            fields.append(field.with_name(name))
    return pa.schema(fields, metadata=existing.metadata)


def remedy(column: str, kind: pa.DataType, found: pa.DataType) -> str:
    """What to do about a corpus' column whose type does not fit the table's."""
    rewrite = f"write the corpus' column as {found}, or embed into a new table"
    same = pa.types.is_integer(kind) == pa.types.is_integer(found)
    if is_number(kind) and is_number(found) and same and kind.bit_width > found.bit_width:
        widen = f'{{"path": "{column}", "data_type": pa.{_FACTORIES.get(str(kind), str(kind))}()}}'
        return f"widen the table's column with lancedb (table.alter_columns({widen})), {rewrite}"
    return rewrite


_FACTORIES = {"double": "float64", "float": "float32", "halffloat": "float16"}


def _fitting_type(found: pa.DataType, column: pa.Field, is_empty: Callable[[str], bool]) -> pa.DataType | None:
    """The type that the table's column must have for the corpus; None if it does not fit."""
    if found == column.type:
        return found
    if column.name in RESERVED:
        return None
    kind = filled(found, column.type) if has_unknown(found) else found
    if may_fit(column.type, kind) and storing_problem(kind) is None:
        return kind
    # Earlier versions made text of a column without any value, and a tar's sample may hold none.
    if is_text(found) and is_empty(column.name) and not holds(column.type, _is_unstorable):
        return column.type
    return None


def _check_nulls(existing: pa.Schema, wanted: pa.Schema, table: TableRef, corpus: str) -> None:
    """Reject a table with a column that can neither be filled nor be null, such as lancedb's `add_columns` makes."""
    for field in existing:
        if field.nullable or field.name in _FILLED:
            continue
        why = "may hold nulls there" if field.name in wanted.names else "has no such column"
        change = f'table.alter_columns({{"path": "{field.name}", "nullable": True}})'
        raise ValueError(
            f"table {table}: its column {field.name!r} ({field.type}) cannot be null, and corpus {corpus} {why}; "
            f"make the column nullable with lancedb ({change}), or drop it"
        )
