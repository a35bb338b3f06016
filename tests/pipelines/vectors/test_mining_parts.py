"""The pure parts: lists for any cut of the gallery, margins for negative scores, missing vectors."""

from __future__ import annotations

import doctest

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.train.mining import histograms, margins
from pipelines.train.mining import mining_report as report
from pipelines.train.mining.catalog import make_catalog
from pipelines.train.mining.margins import calibrate, threshold
from pipelines.vectors import digests, lists
from pipelines.vectors.digests import normalised_caption
from pipelines.vectors.lists import fewest_probes, recall_at, train_centroids
from pipelines.vectors.scan import normalise
from pipelines.vectors.toplists import TopLists


@pytest.mark.parametrize("module", [digests, histograms, lists, margins, report])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("cut", [1, 7, 300])
def test_lists_do_not_depend_on_how_the_gallery_is_cut(cut: int) -> None:
    """Many scores are equal: without a total order a retried task could give another answer."""
    rng = np.random.default_rng(0)
    queries = rng.integers(-2, 3, (9, 6)).astype(np.float32)
    gallery = rng.integers(-2, 3, (300, 6)).astype(np.float32)
    best = TopLists(9, 20)
    for start in rng.permutation(range(0, 300, cut)):
        places = torch.arange(start, min(start + cut, 300))
        best.offer(torch.arange(9), torch.from_numpy(queries), torch.from_numpy(gallery)[places], places)
    scores, places = best.result()
    exact = queries @ gallery.T
    for q in range(9):
        order = sorted(range(300), key=lambda j, q=q: (-exact[q, j], j))[:20]
        assert places[q].tolist() == order
        assert scores[q].tolist() == exact[q, order].tolist()


def test_short_galleries_leave_places_empty() -> None:
    best = TopLists(2, 4)
    best.offer(torch.tensor([1]), torch.ones(1, 3), torch.eye(3)[:2], torch.tensor([5, 8]))
    scores, places = best.result()
    assert places.tolist() == [[-1] * 4, [5, 8, -1, -1]]
    assert scores[0].tolist() == [-np.inf] * 4


def test_a_margin_asks_for_less_than_the_positive_also_where_it_is_negative() -> None:
    assert threshold(np.array([0.5, -0.5, 0.0]), 0.1) == pytest.approx([0.45, -0.55, 0.0])


def test_the_auto_margin_puts_the_median_pair_s_threshold_at_the_first_quartile() -> None:
    for scores in (np.linspace(0.1, 0.5, 101), np.linspace(-0.5, -0.1, 101)):
        assert threshold(np.median(scores)[None], calibrate(scores)) == pytest.approx(np.quantile(scores, 0.25))
    assert calibrate(np.full(5, 0.3)) == 0.0
    assert calibrate(np.array([-1.0, 0.0, 1.0])) == 0.0, "no margin is relative to a median of zero"


def test_vectors_that_are_none_are_told_and_others_have_length_one() -> None:
    kind = pa.list_(pa.float16(), 2)
    rows = [np.array(v, np.float16) if v else None for v in ([3, 4], None, [0, 0], [float("nan"), 1], [0, 2])]
    column = pa.chunked_array([pa.array(rows[:2], kind), pa.array(rows[1:], kind).slice(1)])
    vectors, has = normalise(column)
    assert has.tolist() == [True, False, False, False, True]
    assert vectors[[0, 4]] == pytest.approx(np.array([[0.6, 0.8], [0, 1]]))
    assert not vectors[1:4].any()


def test_one_picture_with_several_captions_is_one_candidate_and_two_of_an_item_are_two() -> None:
    shown = np.array([11, 11, 12, 0, 11], np.uint64)
    item = np.array([1, 1, 1, 2, 1], np.uint64)
    positive = np.array([0.1, np.nan, 0.2, np.nan, 0.3], np.float32)
    found = make_catalog(np.arange(5), item, np.arange(5).astype(np.uint64), positive, shown, np.ones(5))
    assert found.gallery("text_to_image").tolist() == [True, False, True, False, False]
    assert found.gallery("image_to_text").tolist() == [True] * 5
    assert found.anchors().tolist() == [0, 2, 4]
    entry, rows = found.rows_of_pictures(np.array([2, 0, 2]))
    assert (entry.tolist(), rows.tolist()) == ([0, 1, 1, 1, 2], [2, 0, 1, 4, 2])
    said = found.is_said_of(np.array([1, 2, 1, 1], np.uint64), np.array([4, 3, 3, 0], np.uint64))
    assert said.tolist() == [True, True, False, False], "no caption is nobody's caption"


def test_captions_are_compared_without_case_space_or_stop() -> None:
    same = {normalised_caption(text) for text in ("A red dog", " a  RED\tdog. ", "Ａ red dog!")}
    assert same == {"a red dog"}
    assert normalised_caption("小狗。") == "小狗"


def test_probes_are_the_fewest_that_reach_the_recall() -> None:
    ranks, places = np.array([[0, 1, 2, 9]]), np.array([[4, 5, 6, 7]])
    assert [recall_at(ranks, places, n) for n in (1, 2, 4, 10)] == [0.25, 0.5, 0.75, 1.0]
    assert [fewest_probes(ranks, places, recall) for recall in (0.2, 0.25, 0.7, 1.0)] == [1, 1, 3, 10]


def test_centroids_find_clusters_and_none_is_lost() -> None:
    rng = np.random.default_rng(1)
    sample = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0) + 0.01 * rng.standard_normal((200, 4))
    found = train_centroids(sample.astype(np.float32), 12, 0)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(12), abs=1e-5)
    assert np.abs(found @ np.eye(4)).max(axis=0) == pytest.approx(np.ones(4), abs=0.01)
