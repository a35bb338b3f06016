"""The indexes that find known vectors: built in parts, updated with new rows, correct for any parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import BUCKET, moto, options

from pipelines.ingest.stages import reuse
from pipelines.ingest.stages.recent import DIGESTS
from pipelines.ingest.stages.reuse import KnownVectors, index_digests
from pipelines.rows.blocks import KNOWN_PREFIX, REASON
from pipelines.rows.contract import TEXT_VECTOR
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.opening import open_dataset

_DIGEST = DIGESTS[TEXT_VECTOR]
_ROWS_OF_A_FILE = 100


def rows(numbers: range) -> pa.Table:
    values = np.repeat(np.array(numbers, np.float32), 2)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), 2)
    return pa.table({_DIGEST: [f"{n:032x}" for n in numbers], TEXT_VECTOR: vectors})


def append(table: TableRef, numbers: range) -> None:
    lance.write_dataset(
        rows(numbers), table.uri, mode="append", max_rows_per_file=_ROWS_OF_A_FILE, storage_options=table.options
    )


def parts_of(table: TableRef) -> list[list[int]]:
    """The fragments of each part of the one index."""
    (index,) = open_dataset(table).describe_indices()
    return [sorted(segment.fragment_ids) for segment in index.segments]


def found(table: TableRef, numbers: list[int]) -> list[list[float] | None]:
    known = KnownVectors(table, int(open_dataset(table).version), {TEXT_VECTOR: (TEXT_VECTOR,)})
    nothing = pa.nulls(len(numbers), pa.string())
    block = pa.table({_DIGEST: [f"{n:032x}" for n in numbers], REASON: nothing})
    return list(known.attach(block)[KNOWN_PREFIX + TEXT_VECTOR].to_pylist())


@given(st.dictionaries(st.integers(0, 1000), st.integers(1, 50), max_size=40), st.integers(1, 60))
def test_parts_hold_each_fragment_once_and_no_more_rows_than_wanted(sizes: dict[int, int], wanted: int) -> None:
    parts = reuse._parts(sizes, wanted)
    assert [fragment for part in parts for fragment in part] == list(sizes)
    loads = [sum(sizes[fragment] for fragment in part) for part in parts]
    assert all(load <= wanted or len(part) == 1 for load, part in zip(loads, parts, strict=True))
    # No two neighbouring parts would have fitted into one.
    assert all(load + sizes[part[0]] > wanted for load, part in zip(loads, parts[1:], strict=False))


@pytest.fixture(params=["disk", "store"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TableRef]:
    if request.param == "disk":
        yield TableRef.parse(str(tmp_path / "db" / "t"))
    else:
        with moto() as endpoint:
            yield TableRef.parse(f"s3://{BUCKET}/{tmp_path.name}/t", Storage.from_options(options(endpoint)))


@pytest.mark.parametrize("rows_of_a_part", [1, 250, 100_000])
def test_vectors_are_found_in_all_parts_and_in_what_is_not_indexed_yet(
    table: TableRef, monkeypatch: pytest.MonkeyPatch, rows_of_a_part: int
) -> None:
    monkeypatch.setattr(reuse, "_ROWS_OF_A_PART", rows_of_a_part)
    monkeypatch.setattr(reuse, "_FEW_ROWS", 1_000)
    append(table, range(999))
    index_digests(table)
    assert open_dataset(table).describe_indices() == []  # too few

    append(table, range(999, 1_100))
    index_digests(table)
    first = parts_of(table)
    assert len(first) == {1: 12, 250: 6, 100_000: 1}[rows_of_a_part]
    assert sorted(fragment for part in first for fragment in part) == list(range(12))
    index_digests(table)
    assert parts_of(table) == first

    append(table, range(1_100, 1_150))  # too few to be worth an update
    index_digests(table)
    assert parts_of(table) == first
    assert found(table, [0, 998, 1_099, 1_149, 1_150]) == [[0, 0], [998, 998], [1_099, 1_099], [1_149, 1_149], None]

    append(table, range(1_150, 1_400))
    index_digests(table)
    assert parts_of(table)[: len(first)] == first
    assert sorted(fragment for part in parts_of(table) for fragment in part) == list(range(16))

    open_dataset(table).delete(f"{_DIGEST} = '{998:032x}'")
    open_dataset(table).optimize.compact_files()
    assert found(table, [0, 998, 1_099, 1_149, 1_399]) == [[0, 0], None, [1_099, 1_099], [1_149, 1_149], [1_399, 1_399]]
    index_digests(table)
    assert open_dataset(table).stats.index_stats(f"{_DIGEST}_idx")["num_unindexed_rows"] == 0


def test_what_is_kept_of_an_index_does_not_grow_with_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 100_000
    ref = TableRef.parse(str(tmp_path / "db" / "t"))
    lance.write_dataset(rows(range(count)), ref.uri)
    index_digests(ref)

    def kept(bound: int) -> int:
        """Bytes of the index that look-ups in all of it leave in memory."""
        monkeypatch.setattr(reuse, "_INDEX_CACHE_BYTES", bound)
        known = KnownVectors(ref, int(open_dataset(ref).version), {TEXT_VECTOR: (TEXT_VECTOR,)})
        for first in range(0, 500, 100):
            block = rows(range(first, count, 500)).append_column(REASON, pa.nulls(count // 500, pa.string()))
            assert known.attach(block)[KNOWN_PREFIX + TEXT_VECTOR].null_count == 0
        return int(known._open().session().index_cache_size_bytes())

    assert kept(1 << 30) > 32 * count  # the digests alone
    assert kept(1 << 20) <= 1 << 20
