"""The order of rows: a permutation, for any count, that no process has to hold in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.train.finetuning.shuffle import mixed, permuted, step_seed


@given(count=st.integers(1, 5000), seed=st.integers(0, 2**64 - 1), cuts=st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_every_row_comes_once_in_whatever_pieces_and_order_it_is_asked_for(count: int, seed: int, cuts: int) -> None:
    """A row that comes twice in an epoch means one that does not come at all."""
    whole = permuted(np.arange(count), count, seed)
    assert np.array_equal(np.sort(whole), np.arange(count))
    cut = [permuted(part, count, seed) for part in np.array_split(np.arange(count), cuts)]
    assert np.array_equal(np.concatenate(cut), whole)
    asked = np.arange(count)[::-1]
    assert np.array_equal(permuted(asked, count, seed), whole[::-1])


def test_no_place_stays_where_it_is_more_often_than_by_chance() -> None:
    """An order that is not random makes batches of neighbours: captions of one picture, classes of one shard."""
    for count in (17, 64, 300):
        found = np.stack([permuted(np.arange(count), count, int(mixed(9, seed))) for seed in range(1500)])
        for place in (0, count // 2, count - 1):
            share = np.bincount(found[:, place], minlength=count) / len(found)
            assert np.abs(share - 1 / count).max() < 5 * np.sqrt(1 / count / len(found)), (count, place)


@pytest.mark.parametrize("count", [2, 3, 4, 1000])
def test_epochs_and_seeds_have_other_orders(count: int) -> None:
    orders = {tuple(permuted(np.arange(count), count, seed).tolist()) for seed in range(40)}
    assert len(orders) >= min(2, count) if count < 5 else len(orders) == 40


def test_neighbours_are_torn_apart() -> None:
    found = permuted(np.arange(20_000), 20_000, 3)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(20_000), found)[0, 1]) < 0.05


def test_billions_of_rows_take_no_more_memory_than_the_places_asked_for() -> None:
    count = 3_000_000_007
    found = permuted(np.arange(count - 1000, count), count, 1)
    assert found.min() >= 0
    assert found.max() < count
    assert len(set(found.tolist())) == 1000


def test_hashes_depend_on_every_part_and_its_place() -> None:
    """Equal random numbers in two steps or on two processes are equal augmentations and equal dropout."""
    assert len({int(mixed(*parts)) for parts in [(1, 2), (2, 1), (1, 2, 0), (1,), (2,), (0, 1, 2), (-1, 2)]}) == 7
    together = mixed(3, np.arange(100))
    assert together.tolist() == [int(mixed(3, i)) for i in range(100)]
    seeds = {step_seed(0, step, rank) for step in range(100) for rank in range(8)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
