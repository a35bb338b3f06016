"""Few rows compared one by one are ranked as Lance's own exact search ranks them."""

from __future__ import annotations

import lance
import numpy as np
import pyarrow as pa
import pytest

import pipelines.search.retrieval.search as module
from encoders.registry import describe
from pipelines.rows.contract import CAPTION, IMAGE_URI, ITEM_ID, ROW_ID
from pipelines.search.retrieval.queries import Query
from pipelines.search.retrieval.search import search
from pipelines.store.storage import TableRef
from pipelines.tables.provenance import Provenance

ROWS, DIM = 900, 64


@pytest.fixture(scope="module", params=[pa.float16(), pa.float32()])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TableRef:
    """Three fragments; rows without a vector, deleted rows, recurring vectors."""
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    vectors[::9] = vectors[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cells = [None if i % 7 == 3 else v for i, v in enumerate(vectors.astype(request.param.to_pandas_dtype()))]
    rows = pa.table(
        {
            ROW_ID: [f"r{i:04d}" for i in range(ROWS)],
            ITEM_ID: [f"item{i // 2}" for i in range(ROWS)],
            CAPTION: [f"thing {i}" for i in range(ROWS)],
            IMAGE_URI: [None] * ROWS,
            "n": list(range(ROWS)),
            "image_vector": pa.array(cells, pa.list_(request.param, DIM)),
        }
    )
    ref = TableRef.parse(str(tmp_path_factory.mktemp("db") / "db" / "t"))
    provenance = Provenance(encoder=describe("fake").card, modalities=("image",))
    lance.write_dataset(rows.replace_schema_metadata(provenance.to_metadata()), ref.uri, max_rows_per_file=300)
    lance.dataset(ref.uri).delete("n % 5 = 2")
    return ref


@pytest.mark.parametrize(
    "query",
    [
        Query(like="r0001", where="n % 3 = 0", k=20),
        Query(like="r0001", where="n % 3 = 0", k=20, skip=15, distinct=True),
        Query(like="r0011", where="n % 2 = 0", k=500, columns=("n",)),
        Query(like="r0011", where="n = 15", k=5),
        Query(like="r0011", where="n < 0", k=5),
        Query(like="r0011", where="n % 7 = 3", k=5),
        Query(like="r0001", where="n < 400", k=12, diversity=0.4),
    ],
)
def test_they_are_ranked_as_by_a_scan(table: TableRef, query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    few = search(table, query)
    monkeypatch.setattr(module, "few_matches", lambda dataset, condition, most: None)
    scanned = search(table, query)
    assert few.exact
    assert scanned.exact
    assert few.rows.schema.names == scanned.rows.schema.names
    assert few.rows[ROW_ID].to_pylist() == scanned.rows[ROW_ID].to_pylist()
    np.testing.assert_allclose(few.rows["score"].to_numpy(), scanned.rows["score"].to_numpy(), atol=1e-6)
    assert few.pictures.schema == scanned.pictures.schema
