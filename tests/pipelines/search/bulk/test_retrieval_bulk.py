"""Many queries at once give the same results as single ones; an interrupted run resumes; a mismatch is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import isthmus
from corpora import pairs, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st
from mining_tools import card, write_table

from pipelines.search.bulk import answering as bulk
from pipelines.search.bulk.answering import first_of_items, search_many
from pipelines.search.bulk.request import BulkRecallError, BulkSettings
from pipelines.store.storage import TableRef
from pipelines.tables.provenance import EncoderMismatchError

DIM = 16


def units(n: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def gallery(tmp_path: Path) -> TableRef:
    """Ninety rows of forty-five items; every tenth has no picture."""
    images: list[Any] = list(units(90, 0))
    images[::10] = [None] * 9
    return write_table(
        tmp_path / "db" / "t", images, list(units(90, 1)), items=[f"i{i // 2}" for i in range(90)], fragments=3
    )


@pytest.fixture
def queries(tmp_path: Path) -> TableRef:
    """Fifty queries, one of which has no vector."""
    texts: list[Any] = list(units(50, 2))
    texts[7] = None
    return write_table(tmp_path / "db" / "q", [None] * 50, texts, items=[None] * 50, dim=DIM)


def plainly(queries: TableRef, gallery: TableRef, k: int, where: str | None, distinct: bool) -> dict[str, list[str]]:
    """The definition, query by query."""
    rows = lance.dataset(gallery.uri).to_table(filter=where).to_pylist()
    wanted = {}
    for query in lance.dataset(queries.uri).to_table().to_pylist():
        if query["text_vector"] is None:
            continue
        scored = [(np.dot(query["text_vector"], r["image_vector"]), r) for r in rows if r["image_vector"] is not None]
        found: list[str] = []
        items = set()
        for _, row in sorted(scored, key=lambda pair: -pair[0]):
            if not distinct or row["item_id"] not in items:
                found.append(row["row_id"])
            items.add(row["item_id"])
        wanted[query["row_id"]] = found[:k]
    return wanted


def results(out: TableRef) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    rows = lance.dataset(out.uri).to_table().to_pylist()
    for row in sorted(rows, key=lambda row: (row["query_id"], row["rank"])):
        found.setdefault(row["query_id"], []).append(row["row_id"])
        assert row["rank"] == len(found[row["query_id"]]) - 1
    return found


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("where", [None, "n < 30", "n >= 5 OR n = 1"])
@pytest.mark.parametrize("distinct", [False, True])
def test_each_query_finds_what_it_finds_alone(
    queries: TableRef, gallery: TableRef, where: str | None, distinct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_QUERIES_PER_TASK", 20)
    out = gallery.sibling("results")
    report = search_many(queries, gallery, out, BulkSettings(k=7, where=where, distinct=distinct, columns=("n",)))
    assert results(out) == plainly(queries, gallery, 7, where, distinct)
    assert (report.queries, report.skipped, report.method, report.recall) == (49, 1, "exact", 1.0)
    rows = lance.dataset(out.uri).to_table().to_pylist()
    assert report.results == len(rows) == 49 * 7
    vectors = {r["row_id"]: r["image_vector"] for r in lance.dataset(gallery.uri).to_table().to_pylist()}
    asked = {r["row_id"]: r["text_vector"] for r in lance.dataset(queries.uri).to_table().to_pylist()}
    for row in rows:
        assert row["score"] == pytest.approx(np.dot(asked[row["query_id"]], vectors[row["row_id"]]), abs=1e-5)
        assert row["n"] == int(row["row_id"][1:])


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 20), items=st.integers(1, 6), k=st.integers(1, 8), seed=st.integers(0, 999))
def test_of_each_item_the_best_row_comes(rows: int, items: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    item = rng.integers(0, items, rows)
    places = np.stack([rng.permutation(rows) for _ in range(3)])
    places[0, rows // 2 :] = -1
    scores = -np.sort(-rng.random((3, rows)).astype(np.float32), axis=1)
    best, found = first_of_items(scores, places, item, k)
    for query in range(3):
        seen: list[int] = []
        wanted = []
        for score, place in zip(scores[query], places[query], strict=True):
            if place >= 0 and item[place] not in seen:
                seen.append(item[place])
                wanted.append((score, place))
        wanted = wanted[:k]
        assert list(zip(best[query], found[query], strict=True))[: len(wanted)] == wanted
        assert (found[query, len(wanted) :] == -1).all()


@pytest.mark.usefixtures("ray_session")
def test_a_run_that_died_goes_on_and_another_run_replaces(
    queries: TableRef, gallery: TableRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_QUERIES_PER_TASK", 10)
    out = gallery.sibling("results")
    landed = []
    land = bulk.land_results

    def dies_after_two(out: TableRef, part: int, fragments: Any) -> None:
        if len(landed) == 2:
            raise KeyboardInterrupt
        landed.append(part)
        land(out, part, fragments)

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "land_results", dies_after_two)
        with pytest.raises(KeyboardInterrupt):
            search_many(queries, gallery, out, BulkSettings(k=3))
    assert len(results(out)) == sum(9 if part == 4 else 10 for part in landed)
    report = search_many(queries, gallery, out, BulkSettings(k=3))
    assert report.reused == sum(9 if part == 4 else 10 for part in landed)
    assert results(out) == plainly(queries, gallery, 3, None, False)
    again = search_many(queries, gallery, out, BulkSettings(k=3))
    assert (again.reused, again.version) == (49, report.version)
    search_many(queries, gallery, out, BulkSettings(k=2))
    assert results(out) == plainly(queries, gallery, 2, None, False)
    lance.dataset(gallery.uri).delete("n < 50")
    assert search_many(queries, gallery, out, BulkSettings(k=2)).reused == 0
    assert results(out) == plainly(queries, gallery, 2, None, False)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_lists_reach_the_recall_that_was_asked_for(tmp_path: Path) -> None:
    base = units(3_000, 0)
    gallery = write_table(tmp_path / "db" / "t", list(base), list(base), items=[None] * 3_000, fragments=4)
    asked = base[:600] + 0.2 * units(600, 4)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    queries = write_table(tmp_path / "db" / "q", [None] * 600, list(asked), items=[None] * 600, dim=DIM)
    out = gallery.sibling("results")
    report = search_many(queries, gallery, out, BulkSettings(method="lists", target_recall=0.9))
    exact = plainly(queries, gallery, 10, None, False)
    shares = [len(set(found) & set(exact[query])) / 10 for query, found in results(out).items()]
    assert report.method == "lists"
    assert np.mean(shares) == pytest.approx(report.recall, abs=0.05)
    assert np.mean(shares) >= 0.88


@pytest.mark.usefixtures("ray_session")
def test_lists_that_miss_too_much_are_refused(
    queries: TableRef, gallery: TableRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = bulk.build_lists
    monkeypatch.setattr(bulk, "build_lists", lambda *given, **more: (build(*given, **more)[0], 0.5))
    out = gallery.sibling("results")
    with pytest.raises(BulkRecallError, match=r"find 0\.500 of the exact results.*--method exact"):
        search_many(queries, gallery, out, BulkSettings(method="lists"))
    assert not Path(out.uri).exists(), "nothing was written"


def test_what_does_not_fit_is_refused(queries: TableRef, gallery: TableRef, tmp_path: Path) -> None:
    out = gallery.sibling("results")
    with pytest.raises(ValueError, match="'nothing'"):
        search_many(queries, gallery, out, BulkSettings(columns=("nothing",)))
    with pytest.raises(ValueError, match="no_column"):
        search_many(queries, gallery, out, BulkSettings(where="no_column > 1"))
    with pytest.raises(ValueError, match="holds something else than results"):
        search_many(queries, gallery, queries, BulkSettings())
    two = card(DIM, spaces=("one", "two"))
    apart = write_table(tmp_path / "db" / "a", list(units(4, 0)), list(units(4, 1)), items=[None] * 4, encoder=two)
    with pytest.raises(EncoderMismatchError):
        search_many(queries, apart, out, BulkSettings())
    with pytest.raises(ValueError, match="different spaces"):
        search_many(apart, apart, out, BulkSettings(search="image"))
    assert not Path(out.uri).exists()


def test_two_spaces_are_searched_each_by_its_own(shared_ray: None, tmp_path: Path) -> None:
    two = card(DIM, spaces=("one", "two"))
    apart = write_table(tmp_path / "db" / "a", list(units(4, 0)), list(units(4, 1)), items=[None] * 4, encoder=two)
    out = TableRef.parse(str(tmp_path / "db" / "found"))
    report = search_many(apart, apart, out, BulkSettings(k=1))
    found = lance.dataset(out.uri).to_table().to_pylist()
    assert report.search == "text"
    assert [row["row_id"] for row in found] == [row["query_id"] for row in found]
    assert search_many(apart, apart, out, BulkSettings(k=1, search="text")).reused == 4


def test_a_file_of_queries_from_the_command_line(shared_ray: None, tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "corpus" / "a.parquet", pairs(60)).parent
    table, out = str(tmp_path / "db" / "t"), str(tmp_path / "db" / "found")
    assert isthmus("embed", corpus, "--table", table, "--encoder", "fake", "--columns.key", "id").returncode == 0
    words = pa.table({"query": ["q1", "q2", "q3"], "caption": ["red cat", "小狗", None]})
    pq.write_table(words, tmp_path / "queries.parquet")
    command = ("search-many", tmp_path / "queries.parquet", "--table", table, "--out", out, "--columns.key", "query")
    done = isthmus(*command, "--take", "caption,year", "-k", "5", "--parquet", tmp_path / "found.parquet", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["queries"], report["rejected"], report["results"]) == (2, 1, 10)
    found = pq.read_table(tmp_path / "found.parquet")
    assert found.column_names == ["query_id", "query", "rank", "row_id", "score", "caption", "year"]
    alone = json.loads(isthmus("search", table, "red cat", "-k", "5", "--vector", "image_vector", "--json").stdout)
    assert [row["row_id"] for row in found.to_pylist() if row["query_id"] == "q1"] == [
        hit["row_id"] for hit in alone["hits"]
    ]
    assert {(row["query_id"], row["query"]) for row in found.to_pylist()} == {("q1", "red cat"), ("q2", "小狗")}
    again = json.loads(isthmus(*command, "--take", "caption,year", "-k", "5", "--json").stdout)
    assert again["reused"] == 2
    other = isthmus(*command[:-2], "--columns.key", "query", "--take", "score")
    assert other.returncode == 1
    assert "'score'" in other.stderr
