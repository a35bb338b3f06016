"""Training rows and validation rows: disjoint, the same in every run, at the right offsets."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from pipelines.tables.splitting import Selected, Split, in_validation, select


def rows(n: int = 200) -> pa.Table:
    vectors = pa.array([None if i % 11 == 5 else [float(i), 1.0] for i in range(n)], pa.list_(pa.float32(), 2))
    return pa.table(
        {
            "row_id": [f"r{i}" for i in range(n)],
            "item_id": [f"i{i // 4}" for i in range(n)],
            "caption": [None if i % 13 == 2 else f"c{i}" for i in range(n)],
            "concept": [None if i % 9 == 0 else f"k{i % 30}" for i in range(n)],
            "label": pa.array([i % 20 for i in range(n)], pa.int32()),
            "n": list(range(n)),
            "image_vector": vectors,
        }
    )


def write(path: Path, table: pa.Table) -> lance.LanceDataset:
    return lance.write_dataset(table, str(path), max_rows_per_file=37)


def taken(dataset: lance.LanceDataset, found: Selected, column: str) -> list[list[object]]:
    sides = (found.train, found.validation)
    return [dataset.take(o.tolist(), columns=[column])[column].to_pylist() if len(o) else [] for o in sides]


@pytest.mark.parametrize("group", ["item_id", "concept", "label"])
def test_what_belongs_together_stays_together_in_any_order_of_the_rows(group: str, tmp_path: Path) -> None:
    """A table that was compacted or embedded again must not move rows from validation to training."""
    table = rows()
    first = write(tmp_path / "a", table)
    order = np.random.default_rng(1).permutation(len(table))
    second = write(tmp_path / "b", table.take(pa.array(order)))
    split = Split(group=group, fraction=0.3)
    sides = [set(side) - {None} for side in taken(first, select(first, split), group)]
    assert not sides[0] & sides[1]
    assert all(sides)
    numbers = [[sorted(side) for side in taken(d, select(d, split), "n")] for d in (first, first, second)]
    assert numbers[0] == numbers[1] == numbers[2]


def test_deleted_and_added_rows_leave_each_row_on_its_side(tmp_path: Path) -> None:
    dataset = write(tmp_path / "t", rows())
    split = Split(fraction=0.3)
    before = [set(side) for side in taken(dataset, select(dataset, split), "n")]
    dataset.delete("n % 5 = 1 OR (n >= 37 AND n < 74)")
    lance.write_dataset(rows(240).slice(200), str(tmp_path / "t"), mode="append")
    dataset = lance.dataset(str(tmp_path / "t"))
    found = select(dataset, split)
    after = [set(side) for side in taken(dataset, found, "n")]
    gone = {n for n in range(200) if n % 5 == 1 or 37 <= n < 74}
    for old, new in zip(before, after, strict=True):
        assert {n for n in new if n < 200} == old - gone
    assert any(n >= 200 for n in after[0] | after[1])
    assert np.array_equal(found.train, np.sort(found.train))


def test_filters_and_nulls_are_what_a_list_comprehension_says(tmp_path: Path) -> None:
    dataset = write(tmp_path / "t", rows())
    split = Split(where="n < 50 OR n > 150", validation_where="concept = 'k3' OR label > 15")
    found = [sorted(side) for side in taken(dataset, select(dataset, split, ("image_vector",)), "n")]
    usable = [n for n in range(200) if (n < 50 or n > 150) and n % 13 != 2 and n % 11 != 5]
    held_out = [n for n in usable if (n % 9 and n % 30 == 3) or n % 20 > 15]
    assert found == [[n for n in usable if n not in held_out], held_out]


def test_a_filter_that_is_null_for_a_row_leaves_it_in_training(tmp_path: Path) -> None:
    """NOT of null is null: rows without a concept would be in neither part, and nobody would miss them."""
    dataset = write(tmp_path / "t", rows())
    found = taken(dataset, select(dataset, Split(validation_where="concept = 'k3'")), "n")
    assert len(found[0]) + len(found[1]) == sum(n % 13 != 2 for n in range(200))
    assert {n for n in range(0, 200, 9) if n % 13 != 2} <= set(found[0])


def test_shares_are_about_right_and_a_larger_one_holds_the_smaller(tmp_path: Path) -> None:
    values = pa.array([f"item {i}" for i in range(20_000)])
    tenth, third = (in_validation(values, fraction) for fraction in (0.1, 0.3))
    assert abs(tenth.mean() - 0.1) < 0.01
    assert abs(third.mean() - 0.3) < 0.01
    assert not (tenth & ~third).any()
    assert not in_validation(values, 0.0).any()
    assert not in_validation(pa.array([None, None], pa.string()), 0.99).any()
    kinds = [pa.array(["1", "2", None]), pa.chunked_array([["1"], ["2", None]]), pa.array([1, 2, None])]
    assert len({tuple(in_validation(kind, 0.5).tolist()) for kind in kinds}) == 1
    dictionary = pa.array(["1", "2", None]).dictionary_encode()
    assert in_validation(dictionary, 0.5).tolist() == in_validation(kinds[0], 0.5).tolist()


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (Split(group="subject"), "'subject': no such column; columns are row_id"),
        (Split(where="nothing = 1"), "nothing"),
        (Split(validation_where="n ="), "n ="),
        (Split(fraction=1.0), "from 0 to below 1"),
        (Split(fraction=-0.1), "from 0 to below 1"),
    ],
)
def test_splits_that_cannot_be(split: Split, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        select(write(tmp_path / "t", rows(20)), split)


def test_a_filter_that_nothing_passes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="where 'n > 99': no row"):
        select(write(tmp_path / "t", rows(20)), Split(where="n > 99"))
