"""Reranking reads query and hit together: in searches, in evaluations, and trained on mined negatives."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reranking_tools import WORDS, halves, write_planted
from tiny_models import tiny_blip, tiny_vilt

from encoders.cross import load
from encoders.registry import describe
from jobs.embed import EmbedConfig
from jobs.embed import run as embed
from jobs.evaluate import EvaluateConfig
from jobs.evaluate import run as evaluate
from jobs.finetune_reranker import FinetuneRerankerConfig, FinetuneRerankerReport
from jobs.finetune_reranker import run as finetune_reranker
from jobs.mine import MineConfig
from jobs.mine import run as mine
from jobs.search import SearchConfig
from jobs.search import run as search
from pipelines.train.evaluation.ranking import positive_ranks, top_entries
from pipelines.train.mining.mined import MINED_SCHEMA, Mined
from pipelines.train.reranking.training import match_loss
from pipelines.train.reranking.triplets import read_triplets

CAPTION = "red left of blue"


def picture_of(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables of planted pictures and a small cross-encoder with random weights."""
    made = tmp_path_factory.mktemp("planted")
    for name, copies, first in (("train", 12, 0), ("test", 3, 100)):
        corpus = write_planted(made / f"{name}.parquet", copies, first)
        given = {"corpus": str(corpus), "table": str(made / "db" / name), "encoder": "fake", "columns": {"key": "id"}}
        embed(EmbedConfig(**given, engine="process"))  # type: ignore[arg-type]
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tiny_vilt(made / "vilt", WORDS, hidden_size=64, intermediate_size=128, **no_dropout)
    tiny_blip(made / "blip")
    return made


def found(folder: Path, **asked: Any) -> list[dict[str, Any]]:
    report = search(SearchConfig(table=str(folder / "db" / "test"), **asked))
    return report.hits.to_list()


def scores_of(folder: Path, model: str, rows: list[dict[str, Any]], words: str) -> np.ndarray:
    """Each row's picture and the words, scored by the model alone."""
    corpus = {row["id"]: row["image"] for row in _corpus(folder)}
    pictures = [picture_of(corpus[row["row_id"]]) for row in rows]
    return load(str(folder / model)).score(pictures, [words] * len(rows))


def _corpus(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "test.parquet").to_pylist()


@pytest.mark.parametrize("model", ["vilt", "blip"])
def test_hits_are_ordered_by_what_the_model_says_of_each_pair(folder: Path, model: str) -> None:
    plain = found(folder, words=CAPTION, k=25)
    rows = found(folder, words=CAPTION, k=60, rerank=str(folder / model), rerank_depth=25)
    assert {row["row_id"] for row in rows[:25]} == {row["row_id"] for row in plain}
    wanted = scores_of(folder, model, rows[:25], CAPTION)
    np.testing.assert_allclose([row["rerank"] for row in rows[:25]], wanted, atol=2e-5)
    assert (np.diff(wanted) <= 1e-5).all()
    first = {row["row_id"]: row["score"] for row in plain}
    assert all(abs(row["score"] - first[row["row_id"]]) < 1e-6 for row in rows[:25]), "the vectors' score stays"
    assert [row["rerank"] for row in rows[25:]] == [None] * 35
    beyond = found(folder, words=CAPTION, k=60)[25:]
    assert [row["row_id"] for row in rows[25:]] == [row["row_id"] for row in beyond], "what is deeper stays as it was"


def test_pages_of_an_answer_follow_each_other(folder: Path) -> None:
    asked = {"words": CAPTION, "rerank": str(folder / "vilt"), "rerank_depth": 14}
    whole = found(folder, k=20, **asked)
    pages = [*found(folder, k=8, **asked), *found(folder, k=12, skip=8, **asked)]
    assert [row["row_id"] for row in pages] == [row["row_id"] for row in whole]


def test_a_picture_orders_captions(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "q.png").write_bytes(halves("red", "blue", 5))
    asked = {"image": [tmp_path / "q.png"], "vector": "text_vector"}
    rows = found(folder, k=20, rerank=str(folder / "vilt"), **asked)
    captions = [row["caption"] for row in rows]
    model = load(str(folder / "vilt"))
    wanted = model.score([picture_of(halves("red", "blue", 5))] * len(rows), captions)
    np.testing.assert_allclose([row["rerank"] for row in rows], wanted, atol=2e-5)


def test_rows_that_cannot_be_read_come_last_and_stay(folder: Path, tmp_path: Path) -> None:
    corpus = write_planted(tmp_path / "c.parquet", 1)
    table = tmp_path / "db" / "t"
    embed(EmbedConfig(corpus=str(corpus), table=str(table), encoder="fake", columns={"key": "id"}, engine="process"))
    dataset = lance.dataset(f"{table}.lance")
    dataset.update({"image_uri": f"'{tmp_path}/gone.png'"}, where="row_id = 'red-blue-0' OR row_id = 'blue-red-0'")
    plain = search(SearchConfig(table=str(table), words=CAPTION, k=20)).hits.to_list()
    asked = SearchConfig(table=str(table), words=CAPTION, k=20, rerank=str(folder / "vilt"))
    rows = search(asked).hits.to_list()
    assert [row["rerank"] is None for row in rows] == [False] * 18 + [True] * 2
    gone = [row["row_id"] for row in plain if row["row_id"] in ("red-blue-0", "blue-red-0")]
    assert [row["row_id"] for row in rows[18:]] == gone, "in the order of the first stage"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"like": ["red-blue-100"]}, "not like"),
        ({"words": "red", "like": ["red-blue-100"]}, "not words and like"),
        ({"words": "red", "diversity": 0.5}, "rerank and diversity"),
        ({"words": "red", "rerank": "nosuchmodel"}, "nosuchmodel"),
    ],
)
def test_what_cannot_be_reranked_is_refused(folder: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(folder, **({"rerank": str(folder / "vilt")} | asked))


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 50), st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_best_entries_are_those_whose_ranks_are_best(
    queries: int, entries: int, depth: int, block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct values: many ties.
    gallery = rng.integers(-1, 2, (entries, 4)).astype(np.float32) / 4
    asked = rng.integers(-1, 2, (queries, 4)).astype(np.float32) / 4

    def blocks() -> Any:
        return ((start, gallery[start : start + block]) for start in range(0, entries, block))

    every = np.repeat(np.arange(queries), entries), np.tile(np.arange(entries), queries)
    ranks = positive_ranks(asked, blocks, *every).reshape(queries, entries)
    found = top_entries(asked, blocks, depth)
    assert (found == np.argsort(ranks, axis=1)[:, :depth]).all()


def test_the_evaluation_says_what_a_whole_reordering_gives(folder: Path, tmp_path: Path) -> None:
    """With a depth of the whole gallery, the ranks are those of the model's own scores."""
    corpus = write_planted(tmp_path / "c.parquet", 1, 200)
    table = str(tmp_path / "db" / "t")
    embed(EmbedConfig(corpus=str(corpus), table=table, encoder="fake", columns={"key": "id"}, engine="process"))
    config = EvaluateConfig(target=table, rerank=str(folder / "vilt"), rerank_depth=20)
    rows = evaluate(config).extra["reranked by vilt"]
    planted = pq.read_table(corpus).to_pylist()
    model = load(str(folder / "vilt"))
    pictures = [picture_of(row["image"]) for row in planted]
    scores = np.array([model.score(pictures, [row["caption"]] * 20) for row in planted])
    ranks = (scores > np.diag(scores)[:, None]).sum(axis=1) + 1
    back = (np.diag(scores)[:, None] < scores.T).sum(axis=1) + 1
    for direction, wanted in (("text to image", ranks), ("image to text", back)):
        assert rows[f"{direction} R@1"]["reranked"] == pytest.approx((wanted == 1).mean())
        assert rows[f"{direction} MRR"]["reranked"] == pytest.approx((1 / wanted).mean(), abs=1e-3)
        assert rows[f"{direction} R@1"]["best_possible"] == 1.0
    shallow = evaluate(config.model_copy(update={"rerank_depth": 1})).extra["reranked by vilt"]
    assert all(row["first"] == row["reranked"] for row in shallow.values()), "one entry has but one order"
    few = evaluate(config.model_copy(update={"rerank_queries": 7})).extra["reranked by vilt"]
    assert few["text to image R@1"]["queries"] == 7


def test_the_loss_is_that_of_each_pair_by_itself() -> None:
    logits = torch.tensor([0.3, -2.0, 1.0, 0.2, 4.0, -1.0])
    probability = torch.sigmoid(logits.double())
    yes = -torch.log(probability[:2]).mean()
    no = -torch.log(1 - probability[2:]).mean()
    assert float(match_loss(logits, 2)) == pytest.approx(float((yes + no) / 2), abs=1e-6)


def test_negatives_are_of_other_items_and_captions_and_of_the_same_side(folder: Path) -> None:
    dataset = lance.dataset(str(folder / "db" / "train.lance"))
    triplets = read_triplets(dataset, None, None, 0.2, 0, "train")
    assert set(triplets.training) | set(triplets.held_out) == set(range(240))
    assert not set(triplets.item[triplets.training]) & set(triplets.item[triplets.held_out])
    for epoch in (-1, 0, 1):
        side = triplets.held_out if epoch < 0 else triplets.training
        for negative in triplets.negatives_of(side, epoch, 0):
            assert set(negative) <= set(side)
            assert (triplets.text[negative] != triplets.text[side]).all()
            assert (triplets.item[negative] != triplets.item[side]).all()
    with pytest.raises(ValueError, match="none of the 1 mined from elsewhere are of rows of table train"):
        read_triplets(dataset, None, mined_by_hand([("x", "text_to_image", "y")]), 0.2, 0, "train")
    a, b = triplets.negatives_of(triplets.training, 0, 0)[0], triplets.negatives_of(triplets.training, 1, 0)[0]
    assert (a != b).any(), "another epoch, others"


def mined_by_hand(rows: list[tuple[str, str, str]]) -> Mined:
    columns = dict(zip(("row_id", "direction", "negative_row_id"), map(list, zip(*rows, strict=True)), strict=True))
    rest = {name: [None] * len(rows) for name in MINED_SCHEMA.names if name not in columns}
    card = describe("fake").card
    table = pa.table({**columns, **rest}).select(MINED_SCHEMA.names).cast(MINED_SCHEMA)
    return Mined(encoder=card, table="elsewhere", table_version=1, settings={}, negatives=table)


def test_mined_negatives_are_those_of_their_anchor_and_direction(folder: Path) -> None:
    dataset = lance.dataset(str(folder / "db" / "train.lance"))
    plain = read_triplets(dataset, None, None, 0.0, 0, "train")
    ids = dataset.take(plain.offsets.tolist(), columns=["row_id"])["row_id"].to_pylist()
    rows = [(ids[0], "text_to_image", ids[5]), (ids[0], "image_to_text", ids[7]), (ids[3], "text_to_image", ids[9])]
    triplets = read_triplets(dataset, None, mined_by_hand(rows), 0.0, 0, "train")
    pictures, captions = triplets.negatives_of(np.array([0, 3]), 0, 0)
    assert (pictures.tolist(), captions[0]) == ([5, 9], 7)
    assert triplets.mined == pytest.approx(3 / (2 * len(ids)))
    assert triplets.identity != plain.identity


def train(folder: Path, out: Path, progress: Any = None, **more: Any) -> FinetuneRerankerReport:
    given = {"table": str(folder / "db" / "train"), "model": str(folder / "vilt"), "out": out, "threads": 1}
    return finetune_reranker(FinetuneRerankerConfig(**{**given, "batch_rows": 32, **more}), progress)


@pytest.mark.slow
def test_a_training_that_is_cut_short_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "whole", epochs=2)

    def stop(done: int, total: int | None) -> None:
        if total is not None and done > total / 2 + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "cut", stop, epochs=2)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(ValueError, match="the state of another run"):
        train(folder, tmp_path / "cut", epochs=2, learning_rate=1e-4)
    again = train(folder, tmp_path / "cut", epochs=2)
    assert again.report.resumed_at == 1
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    assert not (tmp_path / "cut.run").exists()


def test_a_training_may_do_without_held_out_rows_but_not_without_pictures(folder: Path, tmp_path: Path) -> None:
    report = train(folder, tmp_path / "all", epochs=1, held_out=0.0)
    assert (report.report.rows, report.report.accuracy_before, report.report.accuracy) == (240, None, [None])
    assert "NaN" not in json.dumps(report.to_dict())
    moved = tmp_path / "db" / "t"
    corpus = write_planted(tmp_path / "c.parquet", 1)
    embed(EmbedConfig(corpus=str(corpus), table=str(moved), encoder="fake", columns={"key": "id"}, engine="process"))
    corpus.unlink()
    with pytest.raises(ValueError, match=r"none of the pictures of \d+ rows could be read"):
        train(folder, tmp_path / "none", table=str(moved), epochs=1)
    assert not (tmp_path / "none").exists()


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_session")
def test_what_needs_both_read_together_is_found_by_the_second_stage_alone(folder: Path, tmp_path: Path) -> None:
    """Two towers see the colours but not their sides; a model trained on mined negatives sees both."""
    negatives = str(tmp_path / "db" / "negatives")
    mine(
        MineConfig(
            table=str(folder / "db" / "train"), out=negatives, near_duplicate_text=2, near_duplicate_image=2, margin=0
        )
    )
    report = train(
        folder, tmp_path / "trained", epochs=30, learning_rate=1e-3, batch_rows=24, negatives=negatives
    ).report
    assert report.mined > 0.5
    rows = evaluate(
        EvaluateConfig(target=str(folder / "db" / "test"), rerank=str(tmp_path / "trained"), rerank_depth=30)
    ).extra["reranked by trained"]
    print({name: (row["first"], row["reranked"], row["low"]) for name, row in rows.items()})  # noqa: T201
    assert rows["text to image R@1"]["first"] <= 0.5
    assert rows["text to image R@1"]["reranked"] >= 0.8
    assert rows["image to text R@1"]["first"] <= 0.5
    assert rows["image to text R@1"]["reranked"] >= 0.8
    top = found(folder, words=CAPTION, k=3, rerank=str(tmp_path / "trained"))
    assert {row["caption"] for row in top} == {CAPTION}
