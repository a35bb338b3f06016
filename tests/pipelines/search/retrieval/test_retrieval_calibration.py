"""Predicted match probabilities are observed ones, on queries that were not used in the fit."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from encoders.registry import describe, load
from pipelines.rows.contract import CAPTION, IMAGE_URI, ITEM_ID, ROW_ID
from pipelines.search.retrieval.calibration import calibrate, calibration_error, fit_logistic, read_calibration
from pipelines.search.retrieval.queries import Query
from pipelines.search.retrieval.search import OpenTable
from pipelines.store.storage import TableRef
from pipelines.tables.provenance import Provenance


@pytest.mark.parametrize(("slope", "intercept"), [(12.0, -5.0), (3.0, 1.0), (80.0, -30.0)])
def test_a_logistic_curve_is_found_again(slope: float, intercept: float) -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(-0.2, 1.0, 40_000)
    true = 1 / (1 + np.exp(-(slope * scores + intercept)))
    found = fit_logistic(scores, rng.random(len(scores)) < true)
    assert found[0] == pytest.approx(slope, rel=0.05)
    assert found[1] == pytest.approx(intercept, rel=0.08)
    fitted = 1 / (1 + np.exp(-(found[0] * scores + found[1])))
    assert calibration_error(fitted, rng.random(len(scores)) < true) < 0.02


def test_scores_that_part_cleanly_have_a_finite_slope() -> None:
    slope, intercept = fit_logistic(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    assert np.isfinite([slope, intercept]).all()
    assert slope > 0


def test_the_error_is_the_distance_of_promise_and_outcome() -> None:
    assert calibration_error(np.array([0.25] * 4), np.array([True, False, False, False])) == 0.0
    assert calibration_error(np.array([0.95] * 4), np.array([True, False, False, False])) == pytest.approx(0.7)


def write(path: Path, noise: float, n: int = 900, card: str = "fake") -> TableRef:
    """Captions, and pictures whose vectors are their caption's plus noise and a common offset: a modality gap."""
    rng = np.random.default_rng(2)
    captions = [f"thing {i}" for i in range(n)]
    texts = load("fake").encode_texts(captions).vectors
    images = texts + noise * rng.normal(size=texts.shape) + rng.normal(size=(1, 64)) * 0.2
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    kind = pa.list_(pa.float32(), 64)
    rows = pa.table(
        {
            ROW_ID: [f"r{i}" for i in range(n)],
            ITEM_ID: [f"i{i}" for i in range(n)],
            CAPTION: captions,
            IMAGE_URI: pa.nulls(n, pa.string()),
            "image_vector": pa.array(list(images.astype(np.float32)), kind),
            "text_vector": pa.array(list(texts), kind),
        }
    )
    ref = TableRef.parse(str(path))
    provenance = Provenance(encoder=describe(card).card, modalities=("image", "text"))
    lance.write_dataset(rows.replace_schema_metadata(provenance.to_metadata()), ref.uri)
    return ref


def test_hits_say_how_likely_they_are_a_match(tmp_path: Path) -> None:
    ref = write(tmp_path / "db" / "t", noise=0.2)
    curves = calibrate(lance.dataset(ref.uri), str(ref))
    assert {(curve.column, curve.source) for curve in curves} == {
        ("image_vector", "text_vector"),
        ("text_vector", "image_vector"),
    }
    for curve in curves:
        assert curve.error < 0.05
        assert curve.brier < curve.matches * (1 - curve.matches), "better than saying the same of every hit"
        assert curve.probability(np.array([curve.rise_at(0.9)]), np.zeros(64, np.float32))[0] == pytest.approx(0.9)
        assert read_calibration(lance.dataset(ref.uri), curve.column, curve.source) == curve
    opened = OpenTable.open(ref)
    told, right, count = 0.0, 0, 0
    for i in range(0, 900, 3):
        hits = opened.search(words=f"thing {i}", vector_column="image_vector", k=10).to_list()
        chances = [hit["match"] for hit in hits]
        assert chances == sorted(chances, reverse=True)
        told, count = told + sum(chances), count + len(chances)
        right += f"r{i}" in [hit["row_id"] for hit in hits]
    assert told == pytest.approx(right, rel=0.15), "so many matches as it says there are"
    assert count == 3_000
    for query in (
        Query(like="r1"),
        Query(words="a", like="r1"),
        Query(words="a", vector_column="text_vector"),
    ):
        assert "match" not in opened.search(query).rows.column_names, "no curve was fitted for such a query"
    shown = opened.search(words="a", columns=("caption",)).rows.column_names
    assert shown == ["row_id", "score", "match", "caption"]


def test_without_a_shared_space_or_enough_pairs_there_is_no_curve(tmp_path: Path) -> None:
    apart = write(tmp_path / "db" / "apart", noise=0.2, card="fake+fake-32")
    with pytest.raises(ValueError, match="do not share a space"):
        calibrate(lance.dataset(apart.uri), "t")
    few = write(tmp_path / "db" / "few", noise=0.2, n=12)
    with pytest.raises(ValueError, match="too few to fit a curve"):
        calibrate(lance.dataset(few.uri), "t")
    chance = write(tmp_path / "db" / "chance", noise=50.0)
    with pytest.raises(ValueError, match=r"too few to fit|no likelier matches"):
        calibrate(lance.dataset(chance.uri), "t")
    assert read_calibration(lance.dataset(chance.uri), "image_vector", "text_vector") is None
