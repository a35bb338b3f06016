"""What Lance stores, what fits a table, what is refused: our rules are compared with what Lance and Arrow really do."""

from __future__ import annotations

import decimal
import math
from pathlib import Path
from typing import Any

import lance
import lancedb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lance.fragment import write_fragments
from sink_tools import SCHEMA

from pipelines.rows.types import cast, may_fit
from pipelines.sources.parquet_layout import plain_type
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_dataset
from pipelines.tables.retyping import fit_table
from pipelines.tables.schemas import check_schema, storing_problem

I64 = pa.int64()
PAIR = pa.struct({"a": I64, "b": pa.string()})
FLAT: list[tuple[pa.DataType, Any]] = [
    (pa.null(), None),
    (pa.bool_(), True),
    (I64, 7),
    (pa.uint64(), 2**64 - 1),
    (pa.float16(), 1.5),
    (pa.float64(), 0.1),
    (pa.string(), "é"),
    (pa.large_string(), "é"),
    (pa.binary(), b"x"),
    (pa.large_binary(), b"x"),
    (pa.binary(3), b"xyz"),
    (pa.date32(), 1),
    (pa.date64(), 86_400_000),
    (pa.time32("s"), 1),
    (pa.time64("ns"), 1),
    (pa.timestamp("us", "Europe/Paris"), 1),
    (pa.duration("s"), 1),
    (pa.decimal32(5, 2), decimal.Decimal("1.50")),
    (pa.decimal64(12, 2), decimal.Decimal("1.50")),
    (pa.decimal128(5, 2), decimal.Decimal("1.50")),
    (pa.decimal256(50, 2), decimal.Decimal("1.50")),
    (pa.month_day_nano_interval(), pa.MonthDayNano([1, 2, 3])),
]
NESTED: list[tuple[pa.DataType, Any]] = [
    (PAIR, {"a": 1, "b": "x"}),
    (pa.struct([]), {}),
    (pa.struct({"a": pa.struct([])}), {"a": {}}),
    (pa.struct({"a": PAIR}), {"a": {"a": 1, "b": None}}),
    (pa.list_(PAIR), [{"a": 1, "b": "x"}, None]),
    (pa.list_(pa.struct([])), [{}]),
    (pa.list_(pa.list_(pa.string())), [["x"], []]),
    (pa.list_(PAIR, 2), [{"a": 1, "b": "x"}] * 2),
    (pa.list_(pa.list_(I64), 2), [[1], []]),
    (pa.list_(pa.list_(I64, 2), 2), [[1, 2], [3, 4]]),
    (pa.list_(I64, 0), []),
    (pa.list_(pa.list_(PAIR, 1)), [[{"a": 1, "b": "x"}]]),
    (pa.struct({"a": pa.list_(pa.float32(), 2)}), {"a": [1.0, 2.0]}),
    (pa.struct({"a": pa.list_(PAIR, 2)}), {"a": [{"a": 1, "b": "x"}] * 2}),
    (pa.map_(pa.string(), I64), [("k", 1)]),
    (pa.map_(pa.string(), pa.list_(I64)), [("k", [1])]),
    (pa.list_(pa.map_(pa.string(), I64)), [[("k", 1)]]),
    (pa.list_(pa.map_(pa.string(), I64), 1), [[("k", 1)]]),
]
VALUES = [
    *FLAT,
    *NESTED,
    *((pa.list_(kind), [value, value]) for kind, value in FLAT),
    *((pa.list_(kind, 2), [value, value]) for kind, value in FLAT),
]


def lance_keeps(kind: pa.DataType, values: list[Any], uri: Path) -> bool:
    """Whether Lance makes a table of the type, takes rows, and gives the same rows back."""
    rows = pa.table({"n": range(len(values)), "c": pa.array(values, kind)})
    try:
        dataset = lance.write_dataset(rows.schema.empty_table(), uri, schema=rows.schema)
        written = write_fragments(rows, str(uri), mode="append")
        dataset = lance.LanceDataset.commit(uri, lance.LanceOperation.Append(written), read_version=dataset.version)
        return bool(dataset.to_table()["c"].to_pylist() == rows["c"].to_pylist())
    except BaseException as error:  # a panic of Lance is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return False


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=[str(kind) for kind, _ in VALUES])
def test_we_call_storable_what_lance_stores(kind: pa.DataType, value: Any, tmp_path: Path) -> None:
    kept = all(
        lance_keeps(kind, values, tmp_path / f"{n}.lance") for n, values in enumerate([[value, None] * 2, [None]])
    )
    assert (storing_problem(kind) is None) == kept
    plain = plain_type(kind)
    assert storing_problem(plain) is None or not pa.types.is_decimal(kind), "what has a lossless equal gets it"
    if storing_problem(plain) is None:
        kept = pa.array([value, None], plain).to_pylist()
        assert lance_keeps(plain, kept, tmp_path / "plain.lance")


def test_lists_of_a_fixed_size_keep_it_where_lance_can() -> None:
    assert plain_type(pa.list_(pa.float32(), 2)) == pa.list_(pa.float32(), 2)
    assert plain_type(pa.list_(PAIR, 2)) == pa.list_(PAIR)
    assert plain_type(pa.list_(pa.string(), 2)) == pa.list_(pa.string())
    assert plain_type(pa.map_(pa.string(), pa.field("m", I64))).equals(pa.map_(pa.string(), I64))


NUMBERS = [pa.int8(), pa.int32(), I64, pa.uint8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()]
KINDS = [*NUMBERS, pa.string(), pa.binary(), pa.binary(2), pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("ns")]
KINDS += [pa.date32(), pa.date64(), pa.duration("s"), pa.duration("us"), pa.decimal128(5, 2), pa.decimal128(9, 1)]


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_integer(kind):
        bits = kind.bit_width
        low, high = (
            (-(1 << bits - 1), (1 << bits - 1) - 1) if pa.types.is_signed_integer(kind) else (0, (1 << bits) - 1)
        )
        return st.integers(low, high)
    if pa.types.is_floating(kind):
        whole = st.integers(-(2**11), 2**11).map(float)
        return st.floats(width=kind.bit_width) | whole
    if pa.types.is_string(kind):
        return st.text(max_size=3)
    if pa.types.is_decimal(kind):
        return st.decimals(-99, 99, places=kind.scale, allow_nan=False)
    if pa.types.is_date32(kind):
        return st.integers(-10_000, 10_000)
    if pa.types.is_date64(kind):
        return st.integers(-100, 100).map(lambda day: day * 86_400_000)
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return st.binary(min_size=2, max_size=2)
    return st.integers(-(2**62), 2**62) | st.integers(-9, 9).map(lambda n: n * 1_000_000)


@given(st.data())
def test_a_cast_keeps_every_value_or_raises(data: st.DataObject) -> None:
    kind, target = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(KINDS))
    if not may_fit(kind, target):
        return
    before = pa.chunked_array([pa.array([data.draw(values_of(kind))], kind)])
    try:
        after = cast(before, target)
    except pa.ArrowInvalid:
        return
    old, new = before[0].as_py(), after[0].as_py()
    if pa.types.is_string(target):
        assert new == str(old)
    elif not (isinstance(old, float) and math.isnan(old)):
        assert new == old, (kind, target)


LOSSY = [
    (pa.string(), I64),
    (pa.bool_(), I64),
    (pa.float64(), pa.float32()),
    (I64, pa.float16()),
    (pa.float64(), pa.string()),
    (pa.struct({"a": I64, "b": I64}), pa.struct({"a": I64})),
    (pa.list_(I64), pa.list_(I64, 2)),
    (pa.timestamp("us"), pa.timestamp("us", "UTC")),
    (pa.string(), pa.list_(pa.string())),
]


@pytest.mark.parametrize(("kind", "found"), LOSSY, ids=[f"{a} in {b}" for a, b in LOSSY])
def test_a_type_that_would_lose_is_refused_with_both_types_and_a_remedy(kind: pa.DataType, found: pa.DataType) -> None:
    ref = TableRef.parse("/nowhere/t")
    with pytest.raises(ValueError, match="write the corpus' column as") as caught:
        check_schema(SCHEMA.append(pa.field("c", found)), SCHEMA.append(pa.field("c", kind)), ref, "/corpus")
    assert f"corpus /corpus: column 'c' is {kind}, but {found} in table {ref}" in str(caught.value)


@pytest.fixture
def table(tmp_path: Path) -> TableRef:
    """A table of three rows with columns that hold no value of a known type."""
    ref = TableRef.parse(str(tmp_path / "db" / "t"))
    nulls = {
        "row_id": pa.array(["a", "b", "c"]),
        "p": pa.nulls(3),
        "l": pa.array([[], None, [None]], pa.list_(pa.null())),
        "s": pa.array([{"x": None, "y": 1}, None, {"x": None, "y": None}], pa.struct({"x": pa.null(), "y": I64})),
        "text": pa.nulls(3, pa.string()),
    }
    rows = pa.table({**nulls, **{name: pa.nulls(3, SCHEMA.field(name).type) for name in SCHEMA.names[1:]}})
    lance.write_dataset(rows.cast(_schema(rows.schema)), ref.uri)
    return ref


def _schema(schema: pa.Schema) -> pa.Schema:
    return schema.set(0, SCHEMA.field(0)).with_metadata(SCHEMA.metadata)


TYPED = {
    "p": pa.float64(),
    "l": pa.list_(pa.string()),
    "s": pa.struct({"x": pa.timestamp("us"), "y": I64}),
    "text": pa.list_(I64),
}


def wanted() -> pa.Schema:
    fields = [pa.field(name, kind) for name, kind in TYPED.items()]
    return pa.schema([*SCHEMA, *fields], metadata=SCHEMA.metadata)


def assert_typed(ref: TableRef) -> None:
    rows = open_dataset(ref).to_table()
    assert {name: rows.schema.field(name).type for name in TYPED} == TYPED
    assert set(rows.column_names) == {*SCHEMA.names, *TYPED}
    assert rows["p"].to_pylist() == rows["text"].to_pylist() == [None] * 3
    assert rows["l"].to_pylist() == [[], None, [None]]
    assert rows["s"].to_pylist() == [{"x": None, "y": 1}, None, {"x": None, "y": None}]


def test_columns_without_values_get_the_type_of_the_first_values_and_lose_nothing(table: TableRef) -> None:
    fit_table(table, wanted(), "c")
    assert_typed(table)
    version = open_dataset(table).version
    assert fit_table(table, wanted(), "c").version == version, "nothing is left to do"


@pytest.mark.parametrize("column", TYPED)
@pytest.mark.parametrize("dropped", [False, True], ids=["added", "added and dropped"])
def test_a_change_of_type_that_was_killed_is_ended_by_the_next_run(column: str, dropped: bool, table: TableRef) -> None:
    dataset = open_dataset(table)
    there = dataset.to_table()
    if dropped:  # the typed column is there under its name of the meantime, and holds the values
        typed = pa.table({"row_id": there["row_id"], f"isthmus_retyped_{column}": cast_of(there, column)})
        dataset.merge(typed, "row_id")
        dataset.drop_columns([column])
    else:
        dataset.add_columns(pa.schema([pa.field(f"isthmus_retyped_{column}", TYPED[column])]))
    check_schema(open_dataset(table).schema, wanted(), table, is_empty=lambda name: True)
    fit_table(table, wanted(), "c")
    assert_typed(table)


def cast_of(rows: pa.Table, column: str) -> pa.Array | pa.ChunkedArray:
    return pa.nulls(3, TYPED[column]) if column == "text" else rows[column].cast(TYPED[column])


def test_a_text_column_with_values_keeps_its_type(table: TableRef) -> None:
    open_dataset(table).update({"text": "'x'"}, where="row_id = 'a'")
    with pytest.raises(ValueError, match=r"column 'text' is list<item: int64>, but string in table"):
        fit_table(table, wanted(), "c")
    assert open_dataset(table).schema.field("p").type == pa.null(), "a refusal changes nothing"


def test_a_column_that_cannot_be_null_is_refused_and_the_remedy_works(table: TableRef) -> None:
    by_user = lancedb.connect(table.database).open_table(table.name)
    by_user.add_columns({"one": "1"})
    with pytest.raises(
        ValueError, match=r"column 'one' \(int64\) cannot be null, and corpus c has no such column"
    ) as no:
        fit_table(table, wanted(), "c")
    assert 'table.alter_columns({"path": "one", "nullable": True})' in str(no.value)
    by_user.alter_columns({"path": "one", "nullable": True})
    fit_table(table, wanted(), "c")
    assert open_dataset(table).to_table()["one"].to_pylist() == [1, 1, 1]


def test_the_remedy_for_a_wider_number_works(table: TableRef) -> None:
    narrow = SCHEMA.append(pa.field("n", pa.float32()))
    with pytest.raises(ValueError, match="n' is double") as caught:
        check_schema(narrow, SCHEMA.append(pa.field("n", pa.float64())), table, "c")
    assert 'alter_columns({"path": "n", "data_type": pa.float64()})' in str(caught.value)
    open_dataset(table).add_columns({"n": "cast(1.5 as float)"})
    lancedb.connect(table.database).open_table(table.name).alter_columns({"path": "n", "data_type": pa.float64()})
    assert open_dataset(table).to_table()["n"].to_pylist() == [1.5] * 3
