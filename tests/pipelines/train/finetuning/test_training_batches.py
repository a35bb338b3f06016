"""Batches: the same for any number of processes, and every row in its turn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.train.finetuning.batches import BatchPlan, SequentialPlan


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_with_negatives_every_row_is_an_anchor_once_an_epoch(data: st.DataObject) -> None:
    """Negatives take room; a row that they crowd out of an epoch would never be learned."""
    rows = data.draw(st.integers(2, 90))
    each = data.draw(st.integers(1, 4))
    size = data.draw(st.integers(1 + each, 60).filter(lambda s: s >= 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    negatives = rng.integers(-1, rows, (rows, data.draw(st.integers(1, 6))))
    plan = BatchPlan(
        rows=rows,
        batch_size=size,
        epochs=2,
        seed=data.draw(st.integers(0, 99)),
        negatives=negatives,
        negatives_per_row=each,
    )
    world = data.draw(st.integers(1, 5))
    for epoch in range(2):
        anchors: list[int] = []
        for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
            batch = plan.batch(step).tolist()
            assert len(set(batch)) == len(batch) <= max(size, 2)
            mine = batch[: min(plan.anchors, rows - (step % plan.steps_per_epoch) * plan.anchors)]
            anchors += mine
            for anchor in mine:
                known = {n for n in negatives[anchor].tolist() if n >= 0}
                assert (
                    len(known & set(batch)) >= min(each, len(known)) or len(set(negatives[anchor])) < negatives.shape[1]
                )
            allowed = {n for anchor in mine for n in negatives[anchor].tolist()}
            assert set(batch[len(mine) :]) <= allowed
            shares = [plan.share(step, rank, world) for rank in range(world)]
            assert np.concatenate(shares).tolist() == batch
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert len(set(anchors)) == len(anchors)
        assert len(anchors) >= rows - 1


def test_a_step_does_not_depend_on_those_before_it() -> None:
    """A resumed run asks for step 17 first."""
    plan = BatchPlan(rows=50, batch_size=8, epochs=4, seed=3)
    late = plan.batch(17).tolist()
    assert [plan.batch(step).tolist() for step in range(plan.steps)][17] == late
    assert plan.steps == 4 * 7
    assert len(plan.batch(6)) == 2


def test_epochs_and_seeds_see_other_batches() -> None:
    plan = BatchPlan(rows=64, batch_size=8, epochs=2, seed=0)
    other = BatchPlan(rows=64, batch_size=8, epochs=2, seed=1)
    first = {frozenset(plan.batch(step).tolist()) for step in range(8)}
    assert not first & {frozenset(plan.batch(step).tolist()) for step in range(8, 16)}
    assert not first & {frozenset(other.batch(step).tolist()) for step in range(8)}


@pytest.mark.parametrize(("rows", "size", "lengths"), [(9, 4, [4, 4]), (10, 4, [4, 4, 2]), (3, 8, [3]), (2, 2, [2])])
def test_what_is_left_over(rows: int, size: int, lengths: list[int]) -> None:
    plan = BatchPlan(rows=rows, batch_size=size, epochs=1, seed=0)
    assert [len(plan.batch(step)) for step in range(plan.steps)] == lengths


def test_who_has_no_negatives_trains_all_the_same() -> None:
    negatives = np.full((12, 2), -1)
    negatives[3] = [7, 8]
    plan = BatchPlan(rows=12, batch_size=6, epochs=1, seed=0, negatives=negatives, negatives_per_row=2)
    for step in range(plan.steps):
        batch = plan.batch(step).tolist()
        assert (set(batch[:2]) & {3} == set()) or {7, 8} <= set(batch)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": 0}, "0 rows; a contrastive loss needs 2"),
        ({"rows": 1}, "1 rows"),
        ({"batch_size": 1}, "batch_size 1"),
        ({"epochs": 0}, "epochs 0"),
        ({"negatives": np.zeros((9, 1), np.int64), "negatives_per_row": 4}, "no room in batches of 4"),
    ],
)
def test_plans_that_cannot_train(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BatchPlan(**{"rows": 9, "batch_size": 4, "epochs": 1, "seed": 0, **changes})  # type: ignore[arg-type]


@given(rows=st.integers(0, 60), size=st.integers(1, 20), world=st.integers(1, 5))
def test_validation_sees_each_row_once_in_order(rows: int, size: int, world: int) -> None:
    plan = SequentialPlan(rows=rows, batch_size=size)
    found = [plan.share(step, rank, world).tolist() for step in range(plan.steps) for rank in range(world)]
    assert [row for part in found for row in part] == list(range(rows))
