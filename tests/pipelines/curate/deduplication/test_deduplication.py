"""Deduplication: each duplicate is near its representative, no two kept rows are near, and marking loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from commands import isthmus
from corpora import Pair, pairs, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st
from mining_tools import write_table

from jobs.dedup import DedupConfig, run
from pipelines.curate.deduplication import leaders as leaders_module
from pipelines.curate.deduplication.deduplicate import deduplicate
from pipelines.curate.deduplication.leaders import KEPT, find_leaders
from pipelines.store.storage import TableRef
from pipelines.tables.lease import Lease, LeaseHeldError

DIM = 16


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_units(n: int, seed: int, dim: int = DIM) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


def near(vectors: np.ndarray, seed: int, far: float = 0.05) -> np.ndarray:
    return unit(vectors + far * random_units(len(vectors), seed, vectors.shape[1]))


def naive(vectors: list[np.ndarray], threshold: float) -> list[bool]:
    """The rows that stay, decided one after the other."""
    stays: list[int] = []
    for i in range(len(vectors[0])):
        if not any(min(float(part[i] @ part[j]) for part in vectors) >= threshold for j in stays):
            stays.append(i)
    return [i in stays for i in range(len(vectors[0]))]


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 60),
    dim=st.integers(2, 4),
    modalities=st.integers(1, 2),
    threshold=st.sampled_from([0.5, 0.8, 0.95]),
    seed=st.integers(0, 10_000),
    block=st.sampled_from([3, 16, 1024]),
)
def test_leaders_are_those_of_the_definition(
    n: int, dim: int, modalities: int, threshold: float, seed: int, block: int
) -> None:
    vectors = [random_units(n, seed + m, dim) for m in range(modalities)]
    same = np.min([part @ part.T for part in vectors], axis=0)
    if (np.abs(same - threshold) < 1e-5).any():
        return  # at the threshold, rounding decides
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaders_module, "_BLOCK", block)
        patch.setattr(leaders_module, "_CELLS", 64)
        found = find_leaders(vectors, threshold)
    stays = found.leader == KEPT
    assert stays.tolist() == naive(vectors, threshold)
    for i in np.flatnonzero(~stays):
        before = [j for j in np.flatnonzero(stays) if j < i]
        assert found.score[i] == pytest.approx(max(same[i, j] for j in before), abs=1e-5)
        assert same[i, found.leader[i]] == pytest.approx(found.score[i], abs=1e-5)
        assert found.leader[i] in before


def marks(ref: TableRef) -> dict[str, tuple[str | None, float | None]]:
    rows = lance.dataset(ref.uri).to_table(columns=["row_id", "duplicate_of", "duplicate_score"]).to_pylist()
    return {row["row_id"]: (row["duplicate_of"], row["duplicate_score"]) for row in rows}


@pytest.fixture
def planted(tmp_path: Path) -> TableRef:
    """Six pictures; r6 shows r0's in another item, r7 nearly r1's, r8 is a further caption of r2, r9 repeats r2."""
    base = random_units(6, 0)
    images: list[Any] = [*base, base[0], near(base[1:2], 1)[0], base[2], base[2], None]
    texts = list(random_units(11, 5))
    items = ["a", "b", "c", "d", "e", "f", "g", "h", "c", "c", "k"]
    captions = [f"caption {i}" for i in range(11)]
    captions[9] = captions[2].upper()
    return write_table(tmp_path / "db" / "t", images, texts, items=items, captions=captions, fragments=3)


def test_what_adds_nothing_is_marked_and_names_what_stands_for_it(planted: TableRef) -> None:
    before = lance.dataset(planted.uri)
    report = deduplicate(planted)
    found = marks(planted)
    assert {row: of for row, (of, _) in found.items() if of} == {"r6": "r0", "r7": "r1", "r9": "r2"}
    assert found["r6"][1] == found["r9"][1] == 1.0
    assert 0.95 <= (found["r7"][1] or 0) < 1.0
    assert (report.rows, report.kept, report.exact, report.near, report.groups) == (10, 7, 2, 1, 3)
    after = lance.dataset(planted.uri)
    assert after.to_table(columns=before.schema.names).equals(before.to_table()), "nothing else changed"
    assert after.count_rows("duplicate_of IS NULL") == 8


def test_by_captions_and_by_both(planted: TableRef) -> None:
    """r9 has the caption and the picture of r2; r0 and r6 have the same picture and different captions."""
    for by in ("text", "both"):
        report = deduplicate(planted, by=by, mark=False)
        assert [(group.row_id, group.duplicates) for group in report.largest] == [("r2", ("r9",))]
        assert (report.rows, report.exact, report.near) == (11 if by == "text" else 10, 1, 0)
    assert "duplicate_of" not in lance.dataset(planted.uri).schema.names


def test_marks_are_replaced_by_those_of_the_next_run_and_not_written_twice(planted: TableRef) -> None:
    deduplicate(planted)
    assert deduplicate(planted, threshold=2).near == 0
    assert {row for row, (of, _) in marks(planted).items() if of} == {"r6", "r9"}
    files = len(list(Path(planted.uri).glob("data/*")))
    deduplicate(planted, threshold=2)
    assert len(list(Path(planted.uri).glob("data/*"))) == files


def test_rows_that_were_deleted_do_not_shift_the_marks(planted: TableRef) -> None:
    lance.dataset(planted.uri).delete("row_id = 'r3'")
    lance.dataset(planted.uri).delete("row_id = 'r0'")
    deduplicate(planted)
    assert {row: of for row, (of, _) in marks(planted).items() if of} == {"r7": "r1", "r9": "r2"}


def test_cells_find_what_all_with_all_finds(ray_session: None, tmp_path: Path) -> None:
    """Clusters far from each other, and a measured recall."""
    base = random_units(2_000, 0, 32)
    images = np.concatenate([base, near(base[:700], 1, 0.03), base[700:900]])
    order = np.random.default_rng(3).permutation(len(images))
    images = images[order]
    ref = write_table(
        tmp_path / "db" / "t", list(images), list(images), items=[f"i{i}" for i in range(len(images))], fragments=5
    )
    exact = deduplicate(ref, method="exact", mark=False)
    cells = deduplicate(ref, method="cells")
    assert (exact.method, exact.recall, cells.method) == ("exact", 1.0, "cells")
    assert exact.near == 700
    assert exact.exact == cells.exact == 200
    assert cells.near >= 0.9 * exact.near
    assert cells.recall == pytest.approx(cells.near / exact.near, abs=0.1)
    vector = {f"r{i}": images[i] for i in range(len(images))}
    for row, (of, score) in marks(ref).items():
        if of is not None:
            assert float(vector[row] @ vector[of]) == pytest.approx(score, abs=1e-4)
            assert (score or 0) >= 0.95


def test_a_job_that_writes_and_a_column_of_the_corpus_are_refused(planted: TableRef, tmp_path: Path) -> None:
    lease = Lease.acquire(planted)
    try:
        other = TableRef.parse(str(planted))
        with pytest.raises(LeaseHeldError):
            deduplicate(other)
    finally:
        lease.release()
    lance.dataset(planted.uri).add_columns({"duplicate_of": "'mine'"})
    with pytest.raises(ValueError, match=r"has a column 'duplicate_of' of its own"):
        deduplicate(planted)
    assert deduplicate(planted, mark=False).exact == 2


def test_a_job_goes_on_embedding_into_a_marked_table(tmp_path: Path) -> None:
    """Marks stay with their rows, new rows have none, and the next run marks those too."""
    items = pairs(40)
    twins = [Pair(f"t{i}", items[i].image, items[i].caption, 2000) for i in range(5)]
    corpus, table = tmp_path / "corpus", str(tmp_path / "db" / "t")
    write_parquet(corpus / "a.parquet", [*items, *twins[:3]])
    embed = ("embed", str(corpus), "--table", table, "--encoder", "fake", "--columns.key", "id", "--engine", "process")
    assert isthmus(*embed).returncode == 0
    page = tmp_path / "groups.html"
    done = isthmus("dedup", table, "--html", str(page), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["exact"] >= 3
    assert "data:image/jpeg" in page.read_text()
    first = marks(TableRef.parse(table))
    assert {first[f"t{i}"][0] for i in range(3)} == {f"{i:05d}" for i in range(3)}
    write_parquet(corpus / "b.parquet", twins[3:])
    assert isthmus(*embed).returncode == 0
    second = marks(TableRef.parse(table))
    assert {row: second[row] for row in first} == first
    assert second["t3"] == second["t4"] == (None, None)
    assert run(DedupConfig(table=table)).found.exact >= 5
    assert marks(TableRef.parse(table))["t3"][0] == "00003"
    found = isthmus("search", table, "--like", "00003", "--where", "duplicate_of IS NULL", "--json")
    assert "t3" not in {hit["row_id"] for hit in json.loads(found.stdout)["hits"]}
    assert isthmus("maintain", table).returncode == 0
    assert marks(TableRef.parse(table))["t3"][0] == "00003"


def test_an_empty_table_and_one_without_the_vectors(tmp_path: Path) -> None:
    ref = write_table(tmp_path / "db" / "e", [None, None], [None, None], items=["a", "b"], dim=DIM)
    assert (deduplicate(ref).rows, deduplicate(ref).kept) == (0, 0)
    table = pa.table({"row_id": ["a"]})
    lance.write_dataset(table, str(tmp_path / "db" / "other.lance"))
    with pytest.raises(ValueError, match="isthmus"):
        deduplicate(TableRef.parse(str(tmp_path / "db" / "other")))
