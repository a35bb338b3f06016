"""Rows of two tables joined by their ids."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.tables.joins import RowIndex, hashed, joined_offsets, places_of
from pipelines.train.finetuning.planning import padded_lists


def write(path: Path, ids: list[str]) -> lance.LanceDataset:
    table = pa.table({"row_id": pa.array(ids, pa.string()), "n": pa.array(range(len(ids)), pa.int64())})
    return lance.write_dataset(table, str(path), max_rows_per_file=23)


def test_the_index_is_a_dictionary_also_after_deletions(tmp_path: Path) -> None:
    """A teacher's vector of another row silently teaches the wrong thing."""
    rng = np.random.default_rng(0)
    ids = [f"r{i}" for i in rng.permutation(150)]
    dataset = write(tmp_path / "t", ids)
    dataset.delete("n % 4 = 1")
    dataset = lance.dataset(str(tmp_path / "t"))
    kept = dataset.to_table()["row_id"].to_pylist()
    oracle = {row_id: offset for offset, row_id in enumerate(kept)}
    wanted = [*ids, "nobody", "", None]
    assert RowIndex(dataset).find(wanted).tolist() == [oracle.get(row_id, -1) for row_id in wanted]  # type: ignore[arg-type]
    found = [o for o in RowIndex(dataset).find(pa.chunked_array([ids[:40], ids[40:]])).tolist() if o >= 0]
    assert dataset.take(found, columns=["row_id"])["row_id"].to_pylist() == [i for i in ids if i in oracle]


def test_an_empty_table_knows_nobody(tmp_path: Path) -> None:
    index = RowIndex(write(tmp_path / "t", []))
    assert index.find(["a", "b"]).tolist() == [-1, -1]
    assert index.find([]).tolist() == []


def test_joined_rows_are_the_same_rows(tmp_path: Path) -> None:
    ids = [f"r{i}" for i in range(60)]
    mine, theirs = write(tmp_path / "a", ids), write(tmp_path / "b", [*ids[::-1], "more"])
    offsets = np.array([3, 59, 0, 17])
    assert joined_offsets(mine, offsets, theirs, "teacher t").tolist() == [56, 0, 59, 42]
    assert joined_offsets(mine, offsets[:0], theirs, "teacher t").tolist() == []


def test_a_row_that_the_teacher_lacks_is_named(tmp_path: Path) -> None:
    """Found when the run is planned; otherwise a step would fail in the middle of the night, in only some epochs."""
    mine, theirs = write(tmp_path / "a", [f"r{i}" for i in range(9)]), write(tmp_path / "b", ["r0", "r1", "r2"])
    with pytest.raises(
        ValueError, match=r"teacher t: has no row for 2 of 3 rows of the training table, 'r7' among"
    ) as e:
        joined_offsets(mine, np.array([1, 7, 8]), theirs, "teacher t")
    assert "with the same keys" in str(e.value)
    assert joined_offsets(mine, np.array([1]), theirs, "teacher t").tolist() == [1]


def test_hashes_tell_null_from_words_and_do_not_change(tmp_path: Path) -> None:
    """Ids of captions are compared between batches that other processes loaded."""
    found = hashed(["a", None, "", "None", "a", "\u7ea2"])
    assert len(set(found.tolist())) == 5
    assert found[0] == found[4]
    assert hashed(pa.array(["a"]))[0] == hashed(pa.chunked_array([["a"]]))[0] == found[0] == 3405396810240292928
    assert hashed([]).shape == (0,)


@given(st.lists(st.integers(0, 50), unique=True), st.lists(st.integers(0, 50)))
def test_places_are_those_of_a_list(among: list[int], wanted: list[int]) -> None:
    among = sorted(among)
    oracle = [among.index(w) if w in among else -1 for w in wanted]
    assert places_of(np.array(wanted, np.int64), np.array(among, np.int64)).tolist() == oracle


@given(data=st.data())
@settings(max_examples=60)
def test_padded_lists_are_lists(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, 99))))
    oracle: list[list[int]] = [[v for k, v in pairs if k == key] for key in range(count)]
    most = max(map(len, oracle))
    found = padded_lists(np.array([k for k, _ in pairs], np.int64), np.array([v for _, v in pairs], np.int64), count)
    assert found.tolist() == [values + [-1] * (most - len(values)) for values in oracle]
