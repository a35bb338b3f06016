"""An index whose recall nobody measured is a guess; one that misses its target must not be used."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from encoders.registry import describe
from pipelines.contract import CAPTION, IMAGE_URI, ITEM_ID, POSITION, ROW_ID, SHARD
from pipelines.provenance import Provenance
from pipelines.retrieval.index import (
    RecallError,
    build_vector_index,
    candidate_parameters,
    index_table,
    plan_index,
    read_parameters,
)
from pipelines.retrieval.queries import Query
from pipelines.retrieval.recall import make_probes, measure, recall_at_k
from pipelines.retrieval.search import search
from pipelines.sink.tables import open_dataset
from pipelines.storage import TableRef

GIB = 1 << 30


def clustered(n: int, dim: int = 64, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((60, dim))
    vectors = centres[rng.integers(0, 60, n)] + 0.6 * rng.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_table(
    folder: Path, n: int, *, nulls: int = 0, vectors: np.ndarray | None = None, words: bool = False
) -> TableRef:
    ref = TableRef.parse(str(folder / "db" / "t"))
    found = [None if i < nulls else v for i, v in enumerate(clustered(n) if vectors is None else vectors)]
    table = pa.table(
        {
            ROW_ID: [f"r{i}" for i in range(n)],
            ITEM_ID: [f"i{i // 2}" for i in range(n)],
            CAPTION: [("a red dog runs", "一只小狗在跑", "big boats")[i % 3] for i in range(n)],
            IMAGE_URI: [None] * n,
            "n": list(range(n)),
            "image_vector": pa.array(found, pa.list_(pa.float32(), 64)),
            SHARD: ["s"] * n,
            POSITION: list(range(n)),
        }
    )
    if words:
        table = table.append_column("text_vector", pa.array(list(clustered(n, seed=1)), pa.list_(pa.float32(), 64)))
    provenance = Provenance(encoder=describe("fake").card, modalities=("image", "text") if words else ("image",))
    lance.write_dataset(table.replace_schema_metadata(provenance.to_metadata()), ref.uri)
    return ref


def test_the_plan_follows_size_and_memory() -> None:
    assert plan_index(5_000, 512, 16 * GIB).type == "exact"
    assert plan_index(50_000, 512, 16 * GIB).type == "IVF_HNSW_SQ"
    assert plan_index(50_000, 512, GIB // 8).type == "IVF_RQ"
    large = plan_index(100_000_000, 512, 64 * GIB)
    assert (large.type, large.partitions) == ("IVF_RQ", 10_000)
    assert candidate_parameters(large)[-1]["nprobes"] == large.partitions, "the last try searches everything"


def test_recall_counts_places_filled_as_near_as_the_exact_ones() -> None:
    assert recall_at_k([[0.1, 0.2, 0.9], [0.3]], [[0.1, 0.2, 0.3], [0.3]]) == pytest.approx((2 / 3 + 1) / 2)
    assert recall_at_k([[0.1]], [[0.1, 0.2]]) == 0.5, "too few found is a miss"
    with pytest.raises(ValueError, match="no query to measure with"):
        recall_at_k([], [])


def test_rows_with_equal_vectors_answer_for_each_other(tmp_path: Path) -> None:
    """Measured by id, ten of forty equal rows would be a low recall of a perfect index."""
    table = make_table(tmp_path, 12_000, vectors=np.repeat(clustered(300), 40, axis=0))
    built = build_vector_index(table, "image_vector", 0.95, 16 * GIB)
    assert built["recall_at_10"] >= 0.95
    assert built["type"] == "IVF_RQ", "HNSW loses its way among equal vectors"


def test_rare_vectors_are_measured_too(tmp_path: Path) -> None:
    """A sample of rows without vectors would publish any index at a recall of 1.0 that nobody measured."""
    table = make_table(tmp_path, 3_000, nulls=2_990)
    dataset = open_dataset(table)
    provenance = Provenance.from_schema(dataset.schema)
    assert len(make_probes(dataset, "image_vector", provenance)) == 10
    with pytest.raises(ValueError, match="no vectors to measure with"):
        measure(dataset, "image_vector", [], {})


def test_pictures_are_measured_by_words_too(tmp_path: Path) -> None:
    table = make_table(tmp_path, 200, words=True)
    dataset = open_dataset(table)
    probes = make_probes(dataset, "image_vector", Provenance.from_schema(dataset.schema))
    assert {probe.source for probe in probes} == {"image_vector", "text_vector"}


def test_a_filter_that_leaves_few_rows_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four partitions hold hardly any of twenty rows in twelve thousand: 0 to 2 hits came back for k = 10."""
    from pipelines.retrieval import search as module

    table = make_table(tmp_path, 12_000)
    build_vector_index(table, "image_vector", 0.9, 1 << 20)
    vectors = clustered(12_000)
    order = [f"r{i}" for i in np.argsort(-(vectors @ vectors[1])) if i % 600 == 0][:10]
    hits = search(table, Query(like="r1", k=10, where="n % 600 = 0"))
    assert hits.exact
    assert hits.rows[ROW_ID].to_pylist() == order
    monkeypatch.setattr(module, "_EXACT_UP_TO_MATCHES", 0)
    through_index = search(table, Query(like="r1", k=10, where="n % 600 = 0"))
    assert not through_index.exact
    assert through_index.rows.num_rows == 10


@pytest.mark.parametrize("memory", [16 * GIB, 1 << 20], ids=["hnsw", "ivf_rq"])
def test_an_index_reaches_its_target_and_search_uses_its_parameters(memory: int, tmp_path: Path) -> None:
    table = make_table(tmp_path, 12_000, nulls=40)
    built = build_vector_index(table, "image_vector", 0.95, memory)
    parameters = read_parameters(open_dataset(table), "image_vector")
    assert parameters is not None
    assert built["recall_at_10"] == parameters.recall >= 0.95
    assert parameters.type == ("IVF_HNSW_SQ" if memory > GIB else "IVF_RQ")

    hits = search(table, Query(like="r100", k=10))
    assert not hits.exact
    vectors = clustered(12_000)
    order = np.argsort(-(vectors @ vectors[100]))
    exact = [f"r{i}" for i in order if i >= 40 and i != 100][:10]
    assert len(set(hits.rows[ROW_ID].to_pylist()) & set(exact)) >= 8


def test_an_index_below_its_target_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.retrieval import index

    table = make_table(tmp_path, 12_000)
    poor = [{"nprobes": 1, "refine_factor": 1, "ef": None}]
    monkeypatch.setattr(index, "candidate_parameters", lambda plan: poor)
    with pytest.raises(RecallError, match=r"reaches recall@10 0\.\d+, not 0.999; it is not published"):
        build_vector_index(table, "image_vector", 0.999, 1 << 20)
    assert search(table, Query(like="r1", k=3)).exact


def test_all_indexes_are_built_and_built_again(tmp_path: Path) -> None:
    table = make_table(tmp_path, 300)
    for _ in range(2):
        built = {row["column"]: row["type"] for row in index_table(table, 0.95, GIB)}
        assert built == {ROW_ID: "B-tree", ITEM_ID: "B-tree", CAPTION: "full text (icu)", "image_vector": "exact"}
    found = search(table, Query(words="小狗", full_text=True, k=5))
    assert set(found.rows[CAPTION].to_pylist()) == {"一只小狗在跑"}
    assert set(search(table, Query(words="boat", full_text=True)).rows[CAPTION].to_pylist()) == {"big boats"}
