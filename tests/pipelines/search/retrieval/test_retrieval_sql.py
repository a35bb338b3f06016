"""SQL with similarity gives what numpy gives; refusals name the reason."""

from __future__ import annotations

import json
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from commands import isthmus
from corpora import picture
from serving_tools import N, make_table

from encoders.registry import load
from pipelines.search.retrieval.search import OpenTable
from pipelines.search.retrieval.sql import run_sql
from pipelines.store.storage import TableRef


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sql")


@pytest.fixture(scope="module")
def table(folder: Path) -> TableRef:
    return make_table(folder)


def ask(table: TableRef, statement: str) -> pa.Table:
    return run_sql({"t": OpenTable.open(table)}, statement)


def cosines(table: TableRef, query: np.ndarray) -> np.ndarray:
    rows = lance.dataset(table.uri).to_table(columns=["image_vector"])
    vectors = np.array(rows["image_vector"].to_pylist(), np.float64)
    return np.asarray(vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query))


def test_one_statement_filters_joins_aggregates_and_ranks_by_similarity(table: TableRef) -> None:
    found = ask(
        table,
        "WITH shops AS (SELECT shop, count(*) AS things FROM t GROUP BY shop) "
        "SELECT row_id, things, similar_to_words(image_vector, 'red') AS s FROM t JOIN shops USING (shop) "
        "WHERE price >= 20 ORDER BY s DESC, row_id LIMIT 5",
    )
    scores = cosines(table, load("fake").encode_texts(["red"]).vectors[0].astype(np.float64))
    best = sorted(range(20, N), key=lambda i: (-scores[i], f"r'{i}"))[:5]
    assert found["row_id"].to_pylist() == [f"r'{i}" for i in best]
    np.testing.assert_allclose(found["s"].to_pylist(), scores[best], atol=1e-5)
    assert set(found["things"].to_pylist()) == {N // 3}


def test_rows_and_pictures_are_compared_with_too(table: TableRef, folder: Path) -> None:
    (folder / "it's.jpg").write_bytes(picture(7))
    path = str(folder / "it's.jpg").replace("'", "''")
    found = ask(table, f"SELECT row_id FROM t ORDER BY similar_to_picture(image_vector, '{path}') DESC LIMIT 1")
    assert found["row_id"].to_pylist() == ["r'7"]
    found = ask(table, "SELECT similar_to_row(image_vector, 'r''9') AS s FROM t WHERE row_id = 'r''9'")
    assert found["s"].to_pylist() == [pytest.approx(1.0, abs=1e-5)]


WRONG = {
    "SELECT nope FROM t": "nope",
    "SELECT 1; SELECT 2": "one statement that selects",
    "DROP VIEW t": "one statement that selects",
    "COPY t TO 'x.csv'": "one statement that selects",
    "SELEKT 1": "syntax error",
    "SELECT similar_to_row(image_vector, 'nobody') FROM t": "no row with row_id 'nobody'",
    "SELECT similar_to_picture(image_vector, '/nothing.jpg') FROM t": "nothing.jpg",
}


@pytest.mark.parametrize("statement", WRONG)
def test_what_is_wrong_is_said(statement: str, table: TableRef) -> None:
    with pytest.raises((ValueError, OSError), match=WRONG[statement]):
        ask(table, statement)


def test_half_precision_tables_are_asked_without_their_vectors(table: TableRef, tmp_path: Path) -> None:
    rows = lance.dataset(table.uri).to_table()
    kind = pa.list_(pa.float16(), 64)
    halves = pa.array([np.array(v, np.float16) for v in rows["image_vector"].to_pylist()], kind)
    rows = rows.set_column(rows.schema.get_field_index("image_vector"), "image_vector", halves)
    ref = TableRef.parse(str(tmp_path / "db" / "t"))
    lance.write_dataset(rows, ref.uri)
    assert ask(ref, "SELECT count(*) AS n FROM t WHERE new")["n"].to_pylist() == [N // 2]


def test_the_command_prints_and_writes(table: TableRef, tmp_path: Path) -> None:
    base = str(Path(table.database) / table.name)
    statement = "SELECT row_id, price, similar_to_words(image_vector, 'red') AS s FROM t ORDER BY s DESC"
    done = isthmus("sql", base, f"{statement} LIMIT 2", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["rows"]) == 2
    assert "leaked" not in done.stderr
    for name, read in (
        ("a.parquet", pq.read_table),
        ("a.csv", pa.csv.read_csv),
        ("a.arrow", lambda path: pa.ipc.open_file(path).read_all()),
    ):
        assert isthmus("sql", base, statement, "--out", tmp_path / name).returncode == 0
        assert read(str(tmp_path / name)).num_rows == N
    done = isthmus("sql", base, statement, "--out", tmp_path / "a.xlsx")
    assert done.returncode == 2
    assert ".parquet, .csv, .arrow" in done.stderr
