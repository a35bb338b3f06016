"""A table's queries, right answers and slices: an error in any of them changes a metric without an exception."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from mining_tools import card, write_table
from test_evaluation_ranking import unit

from pipelines.rows.contract import ROW_ID
from pipelines.store.storage import TableRef
from pipelines.train.evaluation.evaluate import EvaluationSettings, evaluate_table
from pipelines.train.evaluation.paired import compare

N = 40


def table(folder: Path, captions: list[str] | None = None, **columns: pa.Array) -> TableRef:
    rng = np.random.default_rng(0)
    images, texts = (list(unit(rng.standard_normal((N, 8)))) for _ in range(2))
    items = [f"i{i}" for i in range(N)]
    ref = write_table(folder / "t", images, texts, items=items, captions=captions, encoder=card(8))
    for name, values in columns.items():
        _replace(ref, lance.dataset(ref.uri).to_table().append_column(name, values))
    return ref


def _replace(ref: TableRef, rows: pa.Table) -> None:
    lance.write_dataset(rows, ref.uri, mode="overwrite")


def test_rows_without_a_value_do_not_answer_for_each_other(tmp_path: Path) -> None:
    """Null is not a concept: with 30 of 40 pictures unlabelled, any of them would count as right."""
    ref = table(tmp_path, concept=pa.array([None] * 30 + ["x"] * 10))
    unlabelled = {"where": "concept IS NULL"}
    by_concept = evaluate_table(ref, EvaluationSettings(relevant="concept", **unlabelled)).directions  # type: ignore[arg-type]
    by_item = evaluate_table(ref, EvaluationSettings(**unlabelled)).directions  # type: ignore[arg-type]
    assert "image_to_image" not in by_concept
    for way, result in by_item.items():
        assert by_concept[way].best_ranks.tolist() == result.best_ranks.tolist()


def test_each_picture_of_a_concept_asks_by_its_caption(tmp_path: Path) -> None:
    ref = table(tmp_path, captions=["same"] * N, concept=pa.array(["a"] * N))
    found = evaluate_table(ref, EvaluationSettings(relevant="concept")).directions["text_to_image"]
    assert (found.queries, found.metrics["R@1"]) == (N, 1.0)


def test_slices_of_folds_are_over_all_queries(tmp_path: Path) -> None:
    ref = table(tmp_path, kind=pa.array(["a", "b", "b", "c"] * (N // 4)))
    found = evaluate_table(ref, EvaluationSettings(slices=("kind",), folds=4)).directions["text_to_image"]
    labels = np.array(["a", "b", "b", "c"] * (N // 4))
    for value in "abc":
        mine = found.slices["kind"][value]
        assert mine["queries"] == (labels == value).sum()
        for metric, values in found.values.items():
            assert mine[metric] == pytest.approx(values[labels == value].mean()), metric


def test_tables_are_compared_whatever_the_order_of_their_rows(tmp_path: Path) -> None:
    """A table written by many actors has another first row for a picture with several captions."""
    rng = np.random.default_rng(1)
    images = np.repeat(unit(rng.standard_normal((N // 2, 8))), 2, axis=0)
    items = [f"i{i // 2}" for i in range(N)]
    first = write_table(
        tmp_path / "a", list(images), list(unit(rng.standard_normal((N, 8)))), items=items, encoder=card(8)
    )
    rows = lance.dataset(first.uri).to_table()
    second = TableRef.parse(str(tmp_path / "b"))
    lance.write_dataset(rows.take(rng.permutation(N)), second.uri)
    a, b = (evaluate_table(ref, EvaluationSettings()) for ref in (first, second))
    assert a.directions["text_to_image"].query_ids == rows[ROW_ID].to_pylist()
    for way in a.directions:
        assert compare(a, b, "MRR", way).mean == 0.0
