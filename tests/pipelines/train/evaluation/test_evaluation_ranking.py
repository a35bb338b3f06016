"""Every metric rests on ranks: one place wrong, or a tie that flips with the block, and recall@1 is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.train.evaluation.ranking import on_grid, positive_ranks


def blocks_of(gallery: np.ndarray, rows: int):  # type: ignore[no-untyped-def]
    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(gallery), rows):
            yield start, gallery[start : start + rows]

    return blocks


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def from_few(rng: np.random.Generator, n: int, dim: int, distinct: int) -> np.ndarray:
    """n vectors, of which only some are distinct, so that scores tie."""
    return unit(rng.standard_normal((distinct, dim)))[rng.integers(0, distinct, n)]


def naive_rank(query: np.ndarray, gallery: np.ndarray, entry: int, own: int) -> int:
    """The entry's position after a full sort, best first and ties in order, in Python's exact integers."""
    q = [round(float(x) * 2**26) for x in query]
    scores = [sum(a * round(float(b) * 2**26) for a, b in zip(q, row, strict=True)) for row in gallery]
    order = sorted((e for e in range(len(gallery)) if e != own), key=lambda e: (-scores[e], e))
    return order.index(entry) + 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 6),
    entries=st.integers(2, 40),
    dim=st.integers(2, 9),
    distinct=st.integers(1, 12),
    block=st.integers(1, 45),
    leave_out=st.booleans(),
)
def test_ranks_equal_a_plain_sort_whatever_the_block(
    seed: int, queries: int, entries: int, dim: int, distinct: int, block: int, leave_out: bool
) -> None:
    rng = np.random.default_rng(seed)
    asked = from_few(rng, queries, dim, distinct)
    gallery = from_few(rng, entries, dim, distinct)
    own = rng.integers(-1, entries, queries) if leave_out else np.full(queries, -1)
    chosen = [
        (q, e)
        for q in range(queries)
        for e in rng.permutation(entries)[: rng.integers(1, entries + 1)].tolist()
        if e != own[q]
    ]
    if not chosen:
        return
    query, entry = (np.array(part, np.int64) for part in zip(*chosen, strict=True))
    found = positive_ranks(asked, blocks_of(gallery, block), query, entry, own if leave_out else None)
    assert found.tolist() == [naive_rank(asked[q], gallery, e, own[q]) for q, e in chosen]


@pytest.mark.parametrize("dim", [7, 64, 515])
def test_equal_vectors_tie_exactly_across_blocks_of_odd_shapes(dim: int) -> None:
    """A plain float32 product differs in its last bits by the block's shape, and ties would break at random."""
    rng = np.random.default_rng(dim)
    gallery = unit(rng.standard_normal((300, dim)))
    copies = [3, 97, 98, 151, 299]
    gallery[copies] = gallery[3]
    asked = unit(rng.standard_normal((65, dim)))
    query = np.repeat(np.arange(65), len(copies))
    entry = np.tile(np.array(copies), 65)
    ranks = {
        rows: positive_ranks(asked, blocks_of(gallery, rows), query, entry).tolist() for rows in (1, 7, 64, 100, 300)
    }
    assert all(found == ranks[300] for found in ranks.values())
    assert (np.diff(np.array(ranks[300]).reshape(65, -1), axis=1) == 1).all(), "copies follow each other, in order"


def test_the_grid_is_finer_than_float32_products() -> None:
    """Otherwise evaluation would merge or swap entries that a float32 search tells apart."""
    rng = np.random.default_rng(0)
    a, b = unit(rng.standard_normal((50, 512))), unit(rng.standard_normal((60, 512)))
    true = a.astype(np.float64) @ b.astype(np.float64).T
    error = np.abs(on_grid(a) @ on_grid(b).T / 2.0**52 - true).max()
    assert error < 5e-8
    half = a.astype(np.float16)
    assert (on_grid(half) / 2.0**26 == half).all(), "float16 lies on the grid"


def test_many_right_answers_do_not_go_another_way_than_few() -> None:
    """More than a handful of positives are counted by another method; the two must agree."""
    rng = np.random.default_rng(4)
    gallery, asked = from_few(rng, 400, 8, 60), from_few(rng, 3, 8, 60)
    entry = np.sort(rng.permutation(400)[:200])
    together = positive_ranks(asked, blocks_of(gallery, 37), np.repeat([0, 1, 2], 200), np.tile(entry, 3))
    alone = [
        positive_ranks(asked[q : q + 1], blocks_of(gallery, 400), np.zeros(1, np.int64), np.array([e]))[0]
        for q in range(3)
        for e in entry
    ]
    assert together.tolist() == alone


@pytest.mark.parametrize("wrong", [2.0, np.nan])
def test_vectors_that_are_no_unit_vectors_are_refused(wrong: float) -> None:
    """Their products may not be whole numbers below 2**53, and ranks would no longer be exact."""
    with pytest.raises(ValueError, match="length"):
        on_grid(np.full((1, 3), wrong, np.float32))
