"""Metrics that decide a promotion must be right: checked against other libraries; ranks against a loop with ties."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mining_tools import card, write_table
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_reciprocal_rank,
)

from pipelines.store.storage import Storage
from pipelines.train.evaluation.bootstrap import interval, paired_difference
from pipelines.train.evaluation.evaluate import EvaluationSettings, evaluate_table
from pipelines.train.evaluation.evaluation_page import Page, html, markdown
from pipelines.train.evaluation.leakage import find_leakage, without
from pipelines.train.evaluation.metrics import (
    Ranks,
    average_precision,
    chance_recall,
    ndcg_at,
    recall_at,
    reciprocal_rank,
)
from pipelines.train.evaluation.paired import compare
from pipelines.train.evaluation.ranking import positive_ranks


def clip_benchmark_recall(scores: torch.Tensor, positive_pairs: torch.Tensor, k: int) -> torch.Tensor:
    """The formula of CLIP_benchmark's `recall_at_k`, any positive in the top K, written out."""
    topk = torch.topk(scores, k, dim=1).indices
    onehot = torch.nn.functional.one_hot(topk, num_classes=scores.shape[1])
    hits = (onehot * positive_pairs[:, None, :].bool()).sum(dim=(1, 2))
    return (hits > 0).float()


def ranks_of(scores: np.ndarray, positive: np.ndarray) -> Ranks:
    """By a stable sort: ties go to the earlier entry."""
    order = np.argsort(-scores, axis=1, kind="stable")
    place = np.argsort(order, axis=1, kind="stable") + 1
    query, entry = np.nonzero(positive)
    return Ranks.of(query, place[query, entry], len(scores))


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_equal_those_of_clip_benchmark_and_torchmetrics(ties: bool) -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.1, 1, (40, 30))
    if ties:
        # Equal scores, separated for the other libraries as isthmus breaks ties: the earlier entry first.
        scores = np.round(scores, 1)
    told_apart = scores - np.arange(30) * 1e-6
    positive = rng.random((40, 30)) < 0.1
    positive[np.arange(40), rng.integers(0, 30, 40)] = True
    ranks = ranks_of(scores, positive)
    theirs, truth = torch.tensor(told_apart), torch.tensor(positive)
    for k in (1, 5, 10):
        np.testing.assert_allclose(recall_at(ranks, k), clip_benchmark_recall(theirs, truth, k).numpy())
        hits = [float(retrieval_hit_rate(s, t, top_k=k)) for s, t in zip(theirs, truth, strict=True)]
        np.testing.assert_allclose(recall_at(ranks, k), hits)
    for mine, function in (
        (reciprocal_rank(ranks), retrieval_reciprocal_rank),
        (average_precision(ranks), retrieval_average_precision),
        (ndcg_at(ranks, 10), lambda s, t: retrieval_normalized_dcg(s, t.long(), top_k=10)),
    ):
        found = [float(function(s, t)) for s, t in zip(theirs, truth, strict=True)]
        np.testing.assert_allclose(mine, found, rtol=1e-5)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_streamed_ranks_equal_a_sort_whatever_the_blocks(data: st.DataObject) -> None:
    """A tie between equal vectors in two blocks must not be broken by the last bit of a matrix product."""
    n, m = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 25))
    block = data.draw(st.integers(1, 26))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    pool = rng.normal(size=(4, 8))
    gallery = pool[rng.integers(0, 4, m)].astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    queries = rng.normal(size=(n, 8)).astype(np.float32)
    positive = rng.random((n, m)) < 0.3
    positive[:, 0] |= ~positive.any(axis=1)
    own = rng.integers(-1, m, n) if data.draw(st.booleans()) else None
    if own is not None:
        positive[np.arange(n)[own >= 0], own[own >= 0]] = False
        positive[~positive.any(axis=1), (own[~positive.any(axis=1)] + 1) % m] = True
    scores = np.round(queries.astype(np.float64) @ gallery.astype(np.float64).T, 9)
    if own is not None:
        scores[np.arange(n)[own >= 0], own[own >= 0]] = -np.inf
    query, entry = np.nonzero(positive)

    def blocks():  # type: ignore[no-untyped-def]
        for start in range(0, m, block):
            yield start, gallery[start : start + block]

    found = positive_ranks(queries, blocks, query, entry, own)
    place = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable") + 1
    assert found.tolist() == place[query, entry].tolist()


def test_chance_is_what_random_orders_give() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([1, 3, 8])
    hits = [np.mean([(rng.permutation(50)[:10] < c).any() for _ in range(4000)]) for c in counts]
    assert chance_recall(50, counts) == pytest.approx(np.mean(hits), abs=0.02)


def vectors(rng: np.random.Generator, n: int, dim: int = 8) -> list[np.ndarray]:
    found = rng.normal(size=(n, dim)).astype(np.float32)
    return list(found / np.linalg.norm(found, axis=1, keepdims=True))


def test_a_table_with_several_captions_and_equal_ones(tmp_path: Path) -> None:
    """Pictures with the same caption are all right answers; a picture with two captions is in the gallery once."""
    e = np.eye(4, dtype=np.float32)
    images = [e[0], e[0], e[1], e[2]]
    texts = [e[0], e[1], e[1], e[2]]
    ref = write_table(tmp_path / "t", images, texts, items=list("aabc"), captions=list("xyyz"), encoder=card(4))
    found = evaluate_table(ref, EvaluationSettings())
    words, pictures = found.directions["text_to_image"], found.directions["image_to_text"]
    # x→a; y (of a) → b first, which is right, because b has the same caption; y (of b) → b; z→c.
    assert (words.queries, words.gallery) == (4, 3)
    assert words.metrics["R@1"] == 1.0
    assert (pictures.queries, pictures.gallery) == (3, 3)
    assert pictures.metrics["R@1"] == 1.0
    other = evaluate_table(ref, EvaluationSettings(where="caption != 'y'", gallery_where="caption = 'y'"))
    assert other.directions["text_to_image"].queries == 2
    assert other.directions["text_to_image"].gallery == 3


def test_pictures_of_which_nothing_is_said_stand_in_the_way_too(tmp_path: Path) -> None:
    e = np.eye(4, dtype=np.float32)
    near = (0.9 * e[0] + 0.1 * e[1]) / np.linalg.norm(0.9 * e[0] + 0.1 * e[1])
    ref = write_table(
        tmp_path / "t", [near, e[1], e[0]], [e[0], e[1], e[2]], items=list("abc"), captions=["x", "y", "z"],
        encoder=card(4),
    )  # fmt: skip
    rows = lance.dataset(ref.uri).to_table()
    texts = [*rows["text_vector"].to_pylist()[:2], None]
    for name, values in (("caption", ["x", "y", None]), ("text_vector", texts)):
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(index, rows.schema.field(index), pa.array(values, rows.schema.field(index).type))
    lance.write_dataset(rows, ref.uri, mode="overwrite")

    alone = evaluate_table(ref, EvaluationSettings()).directions
    assert (alone["text_to_image"].gallery, alone["text_to_image"].metrics["R@1"]) == (2, 1.0)
    found = evaluate_table(ref, EvaluationSettings(gallery_where="true")).directions
    assert (found["text_to_image"].queries, found["text_to_image"].gallery) == (2, 3)
    assert found["text_to_image"].metrics["R@1"] == 0.5, "the third picture is nearer to x than its own"
    assert (found["image_to_text"].queries, found["image_to_text"].gallery) == (2, 2)


def test_folds_slices_and_pairs_of_tables(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = vectors(rng, 60)
    good = [t + 0.2 * v for t, v in zip(texts, vectors(rng, 60), strict=True)]
    bad = [t + 1.5 * v for t, v in zip(texts, vectors(rng, 60), strict=True)]
    unit = [[v / np.linalg.norm(v) for v in rows] for rows in (bad, good)]
    items = [f"i{i}" for i in range(60)]
    worse = write_table(tmp_path / "worse", unit[0], texts, items=items, encoder=card(8))
    better = write_table(tmp_path / "better", unit[1], texts, items=items, encoder=card(8))
    a, b = (evaluate_table(ref, EvaluationSettings()) for ref in (worse, better))
    gain = compare(a, b, "R@1", "text_to_image")
    assert gain.low > 0
    assert gain.p_value < 0.01
    none = compare(a, a, "R@1", "text_to_image")
    assert (none.mean, none.p_value) == (0.0, 1.0)
    folds = evaluate_table(worse, EvaluationSettings(folds=5)).directions["text_to_image"]
    parts = [evaluate_table(worse, EvaluationSettings(where=f"n >= {k * 12} AND n < {k * 12 + 12}")) for k in range(5)]
    wanted = np.mean([part.directions["text_to_image"].metrics["R@1"] for part in parts])
    assert folds.metrics["R@1"] == pytest.approx(wanted)
    with pytest.raises(ValueError, match="different queries"):
        compare(a, parts[0], "R@1", "text_to_image")
    with pytest.raises(ValueError, match="no column 'colour'"):
        evaluate_table(worse, EvaluationSettings(slices=("colour",)))
    with pytest.raises(ValueError, match="no row"):
        evaluate_table(worse, EvaluationSettings(where="n < 0"))
    with pytest.raises(FileNotFoundError, match="no version 99"):
        evaluate_table(worse, EvaluationSettings(version=99))
    apart = write_table(tmp_path / "apart", unit[0], texts, items=items, encoder=card(8, spaces=("one", "two")))
    with pytest.raises(ValueError, match="different spaces"):
        evaluate_table(apart, EvaluationSettings())
    page = Page(evaluation=a, other=b, extra={"difference": {"R@1": gain.to_dict()}})
    assert markdown(page).count("text to image") == 2
    text = html(page, worse, Storage())
    assert "data:image/png" in text
    assert "http" not in text.replace("http-equiv", "")


def test_pictures_that_share_a_value_answer_each_other(tmp_path: Path) -> None:
    e = np.eye(4, dtype=np.float32)
    near = (e[0] + 0.1 * e[3]) / np.linalg.norm(e[0] + 0.1 * e[3])
    ref = write_table(tmp_path / "t", [e[0], near, e[1]], [e[0], e[0], e[1]], items=["a", "b", "c"], encoder=card(4))
    dataset = lance.dataset(ref.uri)
    dataset.add_columns({"concept": "n / 2"})
    found = evaluate_table(ref, EvaluationSettings(relevant="concept")).directions["image_to_image"]
    assert (found.queries, found.gallery, found.metrics["R@1"]) == (2, 2, 1.0)


def test_intervals_cover_the_truth_and_know_clusters() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(60):
        clusters = np.repeat(np.arange(40), 5)
        values = (np.repeat(rng.random(40), 5) < 0.3).astype(float)
        low, high = interval(values, clusters, seed)
        covered += low <= 0.3 <= high
    assert covered >= 50
    apart = interval(values, np.arange(200), 0)
    together = interval(values, clusters, 0)
    assert together[1] - together[0] > 1.5 * (apart[1] - apart[0])
    noise = paired_difference(rng.random(200), rng.random(200), np.arange(200))
    assert noise.low < 0 < noise.high


def test_leaks_are_found_by_words_and_by_looks(tmp_path: Path) -> None:
    """A metric on rows seen in training promises too much."""
    rng = np.random.default_rng(0)
    base = vectors(rng, 6, 32)
    alike = base[1] + 0.15 * np.asarray(vectors(rng, 1, 32)[0])
    train = write_table(
        tmp_path / "train",
        base[:3],
        base[:3],
        items=["a", "b", "c"],
        captions=["A red Car", "x", "y"],
        encoder=card(32),
    )
    images = [base[0], alike / np.linalg.norm(alike), base[4], base[5]]
    test = write_table(
        tmp_path / "test",
        images,
        images,
        items=list("pqrs"),
        captions=["k", "l", "a  red ＣＡＲ", "n"],
        encoder=card(32),
    )
    found = find_leakage(lance.dataset(test.uri), None, lance.dataset(train.uri), None)
    assert (found.same_picture, found.near_picture, found.same_caption) == (1, 1, 1)
    assert found.leaked == ("r0", "r1", "r2")
    kept = evaluate_table(test, EvaluationSettings(where=without(None, found.leaked)))
    assert kept.directions["text_to_image"].query_ids == ["r3"]
