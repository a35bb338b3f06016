"""Questions about Arrow types, and casts that lose nothing."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

Check = Callable[[pa.DataType], bool]


def is_list_view(kind: pa.DataType) -> bool:
    """Whether the type is a list whose items may lie anywhere in a buffer."""
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether the type is a list of any kind, of variable or of fixed size. A map is none."""
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return is_list_view(kind) or any(check(kind) for check in checks)


def is_text(kind: pa.DataType) -> bool:
    """Whether the type is a string of any kind."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether the type is binary of variable size."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether the type is an integer or a float."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def children(kind: pa.DataType) -> list[pa.DataType]:
    """The types of a nested type's parts; empty for other types."""
    if pa.types.is_map(kind):
        return [kind.key_type, kind.item_type]
    if is_list(kind):
        return [kind.value_type]
    return [kind.field(i).type for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []


def holds(kind: pa.DataType, check: Check) -> bool:
    """Whether the type, or a type inside it, passes a check."""
    return check(kind) or any(holds(child, check) for child in children(kind))


def is_of_fixed_size(kind: pa.DataType) -> bool:
    """Whether each value takes the same number of bytes, so that Lance can store lists of a fixed size of them.

    >>> is_of_fixed_size(pa.list_(pa.float32(), 8)), is_of_fixed_size(pa.string())
    (True, False)
    """
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size > 0 and is_of_fixed_size(kind.value_type)
    return not (pa.types.is_nested(kind) or pa.types.is_union(kind) or is_text(kind) or is_bytes(kind))


def has_unknown(kind: pa.DataType) -> bool:
    """Whether the type of some of the values is unknown: null, or a list or struct with a null inside."""
    return holds(kind, pa.types.is_null)


def filled(there: pa.DataType, new: pa.DataType) -> pa.DataType:
    """The type with its unknown parts taken from another type.

    >>> str(filled(pa.list_(pa.null()), pa.list_(pa.string())))
    'list<item: string>'
    """
    if pa.types.is_null(there):
        return new
    if pa.types.is_map(there) and pa.types.is_map(new):
        return pa.map_(filled(there.key_type, new.key_type), filled(there.item_type, new.item_type))
    if is_list(there) and is_list(new):
        inner = filled(there.value_type, new.value_type)
        return pa.list_(inner, there.list_size) if pa.types.is_fixed_size_list(there) else pa.list_(inner)
    if pa.types.is_struct(there) and pa.types.is_struct(new):
        known = {new.field(i).name: new.field(i).type for i in range(new.num_fields)}
        old = [there.field(i) for i in range(there.num_fields)]
        return pa.struct([field.with_type(filled(field.type, known.get(field.name, field.type))) for field in old])
    return there


def may_fit(kind: pa.DataType, target: pa.DataType) -> bool:
    """Whether `cast` keeps at least some values of one type in another. For the others it raises.

    >>> may_fit(pa.int32(), pa.float64()), may_fit(pa.float64(), pa.float32()), may_fit(pa.string(), pa.int64())
    (True, False, False)
    """
    if kind.equals(target) or pa.types.is_null(kind):
        return True
    if pa.types.is_fixed_size_list(target):
        same = pa.types.is_fixed_size_list(kind) and kind.list_size == target.list_size
        return same and may_fit(kind.value_type, target.value_type)
    if pa.types.is_map(kind) and pa.types.is_map(target):
        return may_fit(kind.key_type, target.key_type) and may_fit(kind.item_type, target.item_type)
    if is_list(target):
        return is_list(kind) and not is_list_view(kind) and may_fit(kind.value_type, target.value_type)
    if pa.types.is_struct(target):
        return pa.types.is_struct(kind) and _struct_may_fit(kind, target)
    return _value_may_fit(kind, target)


def _struct_may_fit(kind: pa.DataType, target: pa.DataType) -> bool:
    """No field may be lost. Fields that are missing become null."""
    there = {target.field(i).name: target.field(i) for i in range(target.num_fields)}
    new = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    missing_ok = all(field.nullable for name, field in there.items() if name not in new)
    return missing_ok and all(name in there and may_fit(each, there[name].type) for name, each in new.items())


def _value_may_fit(kind: pa.DataType, target: pa.DataType) -> bool:
    types = pa.types
    if is_text(target):
        return is_text(kind) or bool(types.is_integer(kind))
    if is_bytes(target):
        return is_bytes(kind) or bool(types.is_fixed_size_binary(kind))
    if types.is_floating(target):
        wide = target.bit_width > 16  # Arrow rounds integers to half precision without a word
        return bool(
            (types.is_integer(kind) and wide) or (types.is_floating(kind) and kind.bit_width < target.bit_width)
        )
    if types.is_integer(target):
        return is_number(kind)
    if types.is_timestamp(target):
        return bool(types.is_timestamp(kind) and kind.tz == target.tz)
    same = (types.is_date, types.is_time, types.is_duration, types.is_decimal)
    return any(check(kind) and check(target) for check in same)


def cast(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """A column in a type that it may fit; see `may_fit`.

    Raises:
        pa.ArrowInvalid: a value does not fit.
    """
    return column.cast(target)


def first_misfit(column: pa.ChunkedArray, target: pa.DataType) -> int:
    """The first row whose value does not fit; found by halves. The column has one.

    >>> first_misfit(pa.chunked_array([[1.0, 2.0, 1.5, 0.5]]), pa.int64())
    2
    """
    start, stop = 0, len(column)
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            cast(column.slice(start, middle - start), target)
            start = middle
        except pa.ArrowInvalid:
            stop = middle
    return start
