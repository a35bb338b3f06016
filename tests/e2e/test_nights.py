"""A corpus whose nights differ in their types: what loses nothing is cast, the rest is refused before any work."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import datetime
from pathlib import Path
from typing import Any

import lance
import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import isthmus
from engines import on_engine

from jobs.embed import EmbedConfig, run

pytestmark = pytest.mark.usefixtures("engine")


def embed(night: Path, table: Path, **more: Any) -> Any:
    columns = more.pop("columns", {"key": "id"})
    config = {"corpus": str(night), "table": str(table), "encoder": "fake-8", "columns": columns}
    return run(EmbedConfig(**{**config, **on_engine(), **more}))


def parquet(path: Path, ids: str, **columns: pa.Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": list(ids), "caption": [f"caption {key}" for key in ids], **columns}), path)
    return path


def jsonl(path: Path, ids: str, **columns: list[Any]) -> Path:
    rows = [{"id": key, "caption": f"caption {key}", **_nth(columns, n)} for n, key in enumerate(ids)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def csv(path: Path, ids: str, **columns: list[Any]) -> Path:
    lines = [",".join([key, f"caption {key}", *_nth(columns, n).values()]) for n, key in enumerate(ids)]
    path.write_text("\n".join([",".join(["id", "caption", *columns]), *lines]) + "\n")
    return path


def tar(path: Path, ids: str, **columns: list[Any]) -> Path:
    with tarfile.open(path, "w") as made:
        for n, key in enumerate(ids):
            parts = {"txt": f"caption {key}", "json": json.dumps({"id": key, **_nth(columns, n)})}
            for suffix, text in parts.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(text)
                made.addfile(member, io.BytesIO(text.encode()))
    return path


def _nth(columns: dict[str, list[Any]], n: int) -> dict[str, Any]:
    return {name: values[n] for name, values in columns.items()}


def contents(table: Path) -> dict[str, tuple[pa.DataType, list[Any]]]:
    """Column → its type and its values, in the order of the row ids."""
    rows = lance.dataset(f"{table}.lance").to_table().sort_by("row_id")
    assert rows["text_vector"].null_count == 0
    return {name: (rows.schema.field(name).type, rows[name].to_pylist()) for name in rows.column_names}


I64 = pa.int64()
PAIR = pa.struct({"x": I64, "y": pa.string()})
MAP = pa.map_(pa.string(), I64)
# The first night's values, the second night's, and the type and values that the table then has.
FITTING = {
    "prices all null": (pa.array([1.5, 2.0]), pa.nulls(2), pa.float64(), [1.5, 2.0, None, None]),
    "null before prices": (pa.nulls(2), pa.array([1.5, 2.0]), pa.float64(), [None, None, 1.5, 2.0]),
    "null before maps": (pa.nulls(2), pa.array([[("k", 1)], []], MAP), MAP, [None, None, [("k", 1)], []]),
    "int32 for int64": (pa.array([1, 2]), pa.array([3, 4], pa.int32()), I64, [1, 2, 3, 4]),
    "int64 for int32": (pa.array([1, 2], pa.int32()), pa.array([3, 4]), pa.int32(), [1, 2, 3, 4]),
    "float32 for float64": (
        pa.array([0.5, 1.0]),
        pa.array([1.5, None], pa.float32()),
        pa.float64(),
        [0.5, 1, 1.5, None],
    ),
    "whole floats for int64": (pa.array([1, 2]), pa.array([3.0, None]), I64, [1, 2, 3, None]),
    "large strings": (
        pa.array(["p", "q"]),
        pa.array(["r", None], pa.large_string()),
        pa.string(),
        ["p", "q", "r", None],
    ),
    "dictionary": (pa.array(["p", "q"]), pa.array(["r", "r"]).dictionary_encode(), pa.string(), ["p", "q", "r", "r"]),
    "ints for strings": (pa.array(["p", "q"]), pa.array([1, 2]), pa.string(), ["p", "q", "1", "2"]),
    "list<null> before list<string>": (
        pa.array([[], None], pa.list_(pa.null())),
        pa.array([["p"], []]),
        pa.list_(pa.string()),
        [[], None, ["p"], []],
    ),
    "list<null> after list<string>": (
        pa.array([["p"], []]),
        pa.array([[], None], pa.list_(pa.null())),
        pa.list_(pa.string()),
        [["p"], [], [], None],
    ),
    "struct with a missing field": (
        pa.array([{"x": 1, "y": "p"}, None], PAIR),
        pa.array([{"x": 2}, {"x": 3}], pa.struct({"x": pa.int32()})),
        PAIR,
        [{"x": 1, "y": "p"}, None, {"x": 2, "y": None}, {"x": 3, "y": None}],
    ),
    "struct with a null field before": (
        pa.array([{"x": 1, "y": None}, None], pa.struct({"x": I64, "y": pa.null()})),
        pa.array([{"x": 2, "y": "q"}, None], PAIR),
        PAIR,
        [{"x": 1, "y": None}, None, {"x": 2, "y": "q"}, None],
    ),
    "coarser times": (
        pa.array([1, 2], pa.timestamp("us")),
        pa.array([0, None], pa.timestamp("s")),
        pa.timestamp("us"),
        [datetime(1970, 1, 1, microsecond=1), datetime(1970, 1, 1, microsecond=2), datetime(1970, 1, 1), None],
    ),
    "lists of structs of a fixed size": (
        pa.array([[{"x": 1, "y": "p"}] * 2, None], pa.list_(PAIR, 2)),
        pa.array([[{"x": 2, "y": "q"}] * 2] * 2, pa.list_(PAIR, 2)),
        pa.list_(PAIR),
        [[{"x": 1, "y": "p"}] * 2, None, [{"x": 2, "y": "q"}] * 2, [{"x": 2, "y": "q"}] * 2],
    ),
    "maps": (
        pa.array([[("k", 1)], None], MAP),
        pa.array([[], [("l", None)]], MAP),
        MAP,
        [[("k", 1)], None, [], [("l", None)]],
    ),
    "structs in structs": (
        pa.array([{"s": {"x": 1, "y": "p"}}, None], pa.struct({"s": PAIR})),
        pa.array([{"s": None}, {"s": {"x": 2, "y": "q"}}], pa.struct({"s": PAIR})),
        pa.struct({"s": PAIR}),
        [{"s": {"x": 1, "y": "p"}}, None, {"s": None}, {"s": {"x": 2, "y": "q"}}],
    ),
}


def test_a_night_that_loses_nothing_is_embedded(tmp_path: Path) -> None:
    table = tmp_path / "db" / "t"
    first = {case: values[0] for case, values in FITTING.items()}
    second = {case: values[1] for case, values in FITTING.items()}
    assert embed(parquet(tmp_path / "1" / "a.parquet", "ab", **first), table).written == 2
    assert embed(parquet(tmp_path / "2" / "b.parquet", "cd", **second), table).written == 2
    found = contents(table)
    assert {case: found[case] for case in FITTING} == {
        case: (kind, values) for case, (_, _, kind, values) in FITTING.items()
    }
    assert embed(tmp_path / "1", table).rows_in == 0, "what was embedded stays known"


# Formats that state no types: the first night's values, the second night's, and what the table then has.
LOOSE = {
    "jsonl": {
        "whole numbers": ([1.5, 2.5], [3, None], pa.float64(), [1.5, 2.5, 3.0, None]),
        "null first": ([None, None], [3, 4], I64, [None, None, 3, 4]),
        "empty lists first": ([[], None], [["p"], []], pa.list_(pa.string()), [[], None, ["p"], []]),
        "among text": (["p", "q"], [1.50, True], pa.string(), ["p", "q", "1.5", "true"]),
    },
    "csv": {
        "among text": (["p", "q"], ["1.50", "True"], pa.string(), ["p", "q", "1.50", "True"]),
        "blanks first": (["", ""], ["1.5", ""], pa.float64(), [None, None, 1.5, None]),
        "blanks last": (["1", "2"], ["", ""], I64, [1, 2, None, None]),
    },
    "tar": {
        "null first": ([None, None], [1.5, 2.5], pa.float64(), [None, None, 1.5, 2.5]),
        "null last": ([1.5, 2.5], [None, None], pa.float64(), [1.5, 2.5, None, None]),
        "whole numbers": ([1.5, 2.5], [3, 4], pa.float64(), [1.5, 2.5, 3.0, 4.0]),
        "among text": (["p", "q"], [1, {"k": 2}], pa.string(), ["p", "q", "1", '{"k": 2}']),
    },
}


@pytest.mark.parametrize("suffix", LOOSE)
def test_a_format_without_types_takes_those_of_the_table(suffix: str, tmp_path: Path) -> None:
    write = {"jsonl": jsonl, "csv": csv, "tar": tar}[suffix]
    cases, table = LOOSE[suffix], tmp_path / "db" / "t"
    for n, ids in enumerate(("ab", "cd")):
        night = write(tmp_path / f"{n}.{suffix}", ids, **{case: values[n] for case, values in cases.items()})
        assert embed(night, table).written == 2
    found = contents(table)
    assert {case: found[case] for case in cases} == {
        case: (kind, values) for case, (_, _, kind, values) in cases.items()
    }


REFUSED = {
    "text for numbers": (pa.array([1, 2]), pa.array(["p", "q"])),
    "doubles for floats": (pa.array([1.5, 2.5], pa.float32()), pa.array([0.1, 0.2])),
    "a further field": (pa.array([{"x": 1}] * 2), pa.array([{"x": 1, "z": 2}] * 2)),
    "times with a zone": (pa.array([1, 2], pa.timestamp("us")), pa.array([1, 2], pa.timestamp("us", "UTC"))),
}


def test_a_type_that_loses_is_refused_before_any_work(tmp_path: Path) -> None:
    table, night = tmp_path / "db" / "t", tmp_path / "2" / "b.parquet"
    first = {case: values[0] for case, values in REFUSED.items()}
    before = embed(parquet(tmp_path / "1" / "a.parquet", "ab", **first), table).version
    for case, (there, new) in REFUSED.items():
        parquet(night, "cd", **{**first, case: new})
        with pytest.raises(ValueError, match=rf"column '{case}' is .*write the corpus' column as") as caught:
            embed(night, table)
        for part in (str(night), str(new.type), str(there.type), str(table)):
            assert part in str(caught.value)
    assert lance.dataset(f"{table}.lance").version == before
    assert {case: contents(table)[case][1] for case in REFUSED} == {
        case: values.to_pylist() for case, values in first.items()
    }


MISFITS = {
    "a half in int64": (pa.array([1, 2]), pa.array([3.0, 1.5]), "1.5"),
    "2**40 in int32": (pa.array([1, 2], pa.int32()), pa.array([3, 2**40]), str(2**40)),
    "2**53 + 1 in double": (pa.array([1.5, 2.5]), pa.array([3, 2**53 + 1]), str(2**53 + 1)),
}


def test_a_value_that_does_not_fit_is_refused_with_its_file_and_the_table_stays(tmp_path: Path) -> None:
    table, night = tmp_path / "db" / "t", tmp_path / "2" / "b.parquet"
    first = {case: values[0] for case, values in MISFITS.items()}
    embed(parquet(tmp_path / "1" / "a.parquet", "ab", **first), table)
    for case, (there, new, value) in MISFITS.items():
        parquet(night, "cd", **{**first, case: new})
        with pytest.raises(ValueError, match="cannot hold") as caught:
            embed(night, table)
        kinds = f"{night}: column '{case}' is {new.type}, but {there.type} in table {table}, which cannot hold {value}"
        assert kinds in str(caught.value)
        assert "write the corpus' column as" in str(caught.value)
    assert {case: contents(table)[case][1] for case in MISFITS} == {
        case: values.to_pylist() for case, values in first.items()
    }
    parquet(night, "cd", **first)
    assert embed(night, table).written == 2, "the mended night is embedded"


UNSTORABLE = {
    "a dot": "a.b",
    "a backtick": "a`b",
    "no name": "",
    "of Lance": "_rowoffset",
    "ours": "_known_image_vector",
}


@pytest.mark.parametrize("case", UNSTORABLE)
def test_a_column_name_that_no_table_takes_is_refused_and_leaves_no_table(case: str, tmp_path: Path) -> None:
    night, table = tmp_path / "a.parquet", tmp_path / "db" / "t"
    pq.write_table(pa.table({"id": ["a"], "caption": ["b"], UNSTORABLE[case]: [1]}), night)
    with pytest.raises(ValueError, match="rename it") as caught:
        embed(night, table)
    assert repr(UNSTORABLE[case]) in str(caught.value)
    assert not Path(f"{table}.lance").exists()


def test_a_column_that_cannot_be_null_is_refused_and_its_remedy_lets_the_night_in(tmp_path: Path) -> None:
    table = tmp_path / "db" / "t"
    embed(parquet(tmp_path / "1" / "a.parquet", "ab", c=pa.array([1, 2])), table)
    by_user = lancedb.connect(str(table.parent)).open_table("t")
    by_user.add_columns({"one": "1"})
    night = parquet(tmp_path / "2" / "b.parquet", "cd", c=pa.array([3, 4]))
    asked = isthmus(
        "embed", night, "--table", table, "--encoder", "fake-8", "--columns.key", "id", "--engine", "process"
    )
    assert asked.returncode == 1
    assert "column 'one' (int64) cannot be null" in asked.stderr
    assert 'table.alter_columns({"path": "one", "nullable": True})' in asked.stderr
    assert contents(table)["c"][1] == [1, 2]
    by_user.alter_columns({"path": "one", "nullable": True})
    assert embed(night, table).written == 2
    rows = lance.dataset(f"{table}.lance").to_table().sort_by("row_id")
    assert (rows["c"].to_pylist(), rows["one"].to_pylist()) == ([1, 2, 3, 4], [1, 1, None, None])


def test_a_forecast_refuses_what_the_run_would_refuse(tmp_path: Path) -> None:
    table = tmp_path / "db" / "t"
    embed(parquet(tmp_path / "1" / "a.parquet", "ab", c=pa.array([1, 2])), table)
    night = parquet(tmp_path / "2" / "b.parquet", "cd", c=pa.array(["p", "q"]))
    asked = isthmus("plan", night, "--table", table, "--encoder", "fake-8", "--columns.key", "id")
    assert asked.returncode == 1
    assert "column 'c' is string, but int64 in table" in asked.stderr


@pytest.mark.parametrize("embedding", ["auto", "any"])
def test_a_null_caption_of_a_text_corpus_is_a_missing_caption(embedding: str, tmp_path: Path) -> None:
    night = parquet(tmp_path / "a.parquet", "ab")
    pq.write_table(pa.table({"id": ["a", "b"], "caption": ["x", None]}), night)
    report = embed(night, tmp_path / "db" / "t", embed=embedding)
    assert (report.written, report.rejected) == (1, {"missing_caption": 1})
