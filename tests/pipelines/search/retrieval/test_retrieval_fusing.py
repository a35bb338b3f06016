"""Fused and diversified rankings, against the formulas written out in loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.search.retrieval.composing import compose
from pipelines.search.retrieval.fusing import diversify, fuse_ranks, fuse_scores, stretch

IDS = st.sampled_from("abcdefghij")
RANKING = st.lists(IDS, unique=True, max_size=10)
SCORES = st.dictionaries(IDS, st.floats(-5, 5), max_size=10)


@given(st.lists(RANKING, min_size=1, max_size=3))
def test_reciprocal_ranks(rankings: list[list[str]]) -> None:
    scores = fuse_ranks(rankings)
    assert set(scores) == {row for ranking in rankings for row in ranking}
    for row, score in scores.items():
        wanted = sum(1 / (61 + ranking.index(row)) for ranking in rankings if row in ranking)
        assert score == pytest.approx(wanted)


@given(st.lists(st.tuples(RANKING, st.integers(1, 3)), min_size=1, max_size=3))
def test_a_weight_of_two_is_a_ranking_that_is_given_twice(given_: list[tuple[list[str], int]]) -> None:
    rankings, weights = [ranking for ranking, _ in given_], [float(weight) for _, weight in given_]
    repeated = [ranking for ranking, weight in given_ for _ in range(weight)]
    assert fuse_ranks(rankings, weights) == pytest.approx(fuse_ranks(repeated))
    scored = [{row: 1.0 / (i + 1) for i, row in enumerate(ranking)} for ranking in rankings]
    twice = [scores for scores, (_, weight) in zip(scored, given_, strict=True) for _ in range(weight)]
    assert fuse_scores(scored, weights) == pytest.approx(fuse_scores(twice))


@given(RANKING.filter(bool))
def test_a_ranking_fused_with_itself_keeps_its_order(ranking: list[str]) -> None:
    scores = fuse_ranks([ranking, ranking])
    assert sorted(ranking, key=lambda row: -scores[row]) == ranking


@given(st.lists(SCORES, min_size=1, max_size=3))
def test_scores_stay_between_nought_and_one_and_keep_each_order(rankings: list[dict[str, float]]) -> None:
    scores = fuse_scores(rankings)
    assert set(scores) == {row for ranking in rankings for row in ranking}
    assert all(-1e-9 <= score <= 1 + 1e-9 for score in scores.values())
    (alone,) = rankings[:1]
    single = fuse_scores([alone])
    for a in alone:
        assert all(single[a] >= single[b] for b in alone if alone[a] >= alone[b])


def test_an_id_that_a_ranking_lacks_has_nothing_there() -> None:
    assert fuse_scores([{"a": 3.0, "b": 1.0, "c": 2.0}, {"c": 7.0, "b": 5.0}]) == {"a": 0.5, "b": 0.0, "c": 0.75}


def test_a_flat_ranking_has_no_opinion() -> None:
    assert stretch(np.array([2.0, 2.0])).tolist() == [1.0, 1.0]
    assert stretch(np.array([])).tolist() == []


def unit(n: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(st.integers(1, 12), st.integers(1, 14), st.floats(0, 1), st.integers(0, 10_000))
def test_variety_is_the_greedy_choice(n: int, count: int, diversity: float, seed: int) -> None:
    vectors, relevance = unit(n, 4, seed), np.random.default_rng(seed + 1).normal(size=n)
    chosen = diversify(relevance, vectors, diversity, count).tolist()
    assert len(chosen) == len(set(chosen)) == min(n, count)
    cosine = vectors.astype(np.float64) @ vectors.T
    pairs = [cosine[i, j] for i in range(n) for j in range(n) if i != j]
    low, span = (min(pairs), (max(pairs) - min(pairs)) or 1.0) if pairs else (0.0, 1.0)
    for place, row in enumerate(chosen):
        before = chosen[:place]

        def worth(i: int, before: list[int] = before) -> float:
            near = max((float(np.clip((cosine[i, j] - low) / span, 0, 1)) for j in before), default=0.0)
            return (1 - diversity) * float(stretch(relevance)[i]) - diversity * near

        assert worth(row) >= max(worth(i) for i in range(n) if i not in before) - 1e-6


def test_without_variety_the_order_stays_and_with_it_twins_part() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    relevance = np.array([0.9, 0.8, 0.2])
    assert diversify(relevance, vectors, 0.0, 3).tolist() == [0, 1, 2]
    assert diversify(relevance, vectors, 0.6, 3).tolist() == [0, 2, 1]


@given(st.integers(0, 10_000), st.lists(st.floats(0.1, 3), min_size=2, max_size=4))
def test_a_composed_vector_ranks_by_the_sum_of_standardised_cosines(seed: int, weights: list[float]) -> None:
    gallery, terms = unit(60, 8, seed).astype(np.float64), unit(len(weights), 8, seed + 1).astype(np.float64)
    signed = np.array([w if i % 2 == 0 else -w for i, w in enumerate(weights)])
    composed = compose(terms * 7, signed, gallery * 3)
    assert np.linalg.norm(composed) == pytest.approx(1.0, abs=1e-5)
    cosines = terms @ gallery.T
    wanted = signed @ ((cosines - cosines.mean(1, keepdims=True)) / cosines.std(1, keepdims=True))
    found = gallery @ composed
    assert np.corrcoef(wanted, found)[0, 1] == pytest.approx(1.0, abs=1e-5)


def test_terms_that_cancel_are_refused_and_an_empty_gallery_is_a_plain_sum() -> None:
    with pytest.raises(ValueError, match="cancel each other out; change a weight"):
        compose(np.eye(3)[[0, 0]], np.array([1.0, -1.0]), np.zeros((0, 3)))
    np.testing.assert_allclose(compose(np.eye(3)[:2], np.array([3.0, 4.0]), np.zeros((0, 3))), [0.6, 0.8, 0.0])
