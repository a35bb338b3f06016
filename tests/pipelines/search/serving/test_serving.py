"""The API answers as search does, and reveals nothing else, whatever it is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from corpora import picture
from serving_tools import N, make_table
from starlette.testclient import TestClient

from encoders.registry import describe
from jobs.serve import ServeConfig, make_app
from pipelines.rows.contract import CAPTION, IMAGE_URI, ITEM_ID, ROW_ID
from pipelines.search.serving.app import ServeSettings, create_app
from pipelines.search.serving.facets import Chosen, condition, facets
from pipelines.search.serving.row_images import corpus_root, is_within
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_dataset
from pipelines.tables.provenance import Provenance


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def table(folder: Path) -> TableRef:
    return make_table(folder)


@pytest.fixture(scope="module")
def client(table: TableRef) -> Iterator[TestClient]:
    with TestClient(create_app({"t": table}, ServeSettings()), base_url="http://localhost") as made:
        yield made


def ask(client: TestClient, **query: Any) -> dict[str, Any]:
    answer = client.post("/api/search", json={"table": "t", **query})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(client: TestClient, **query: Any) -> tuple[int, str]:
    answer = client.post("/api/search", json={"table": "t", **query})
    return answer.status_code, json.dumps(answer.json()["detail"], ensure_ascii=False)


def test_two_versions_of_a_table_stand_side_by_side(tmp_path: Path) -> None:
    ref = make_table(tmp_path)
    before = lance.dataset(ref.uri).version
    lance.dataset(ref.uri).delete("price < 30")
    names = [str(ref), f"{ref}@{before}"]
    app = make_app(ServeConfig(tables=names))
    with TestClient(app, base_url="http://localhost") as client:
        told = {about["name"]: about["rows"] for about in client.get("/api/tables").json()}
        assert told == {"t": N - 30, f"t@{before}": N}
        for name, there in (("t", False), (f"t@{before}", True)):
            found = client.post("/api/search", json={"table": name, "words": "red thing", "k": N}).json()["hits"]
            assert ("r'3" in {hit["row_id"] for hit in found}) is there


def test_the_tables_are_told_with_what_can_be_filtered(client: TestClient) -> None:
    (about,) = client.get("/api/tables").json()
    assert (about["name"], about["rows"], about["encoder"], about["full_text"]) == ("t", N, "fake", True)
    found = {facet["column"]: facet for facet in about["facets"]}
    assert set(found) == {"price", "shop", "new", "day", "at", "note"}
    assert (found["price"]["kind"], found["price"]["low"], found["price"]["high"]) == ("range", 0.0, N - 1.0)
    assert (found["shop"]["kind"], set(found["shop"]["values"])) == ("choice", {"it's", "b`c", "plain"})
    assert found["note"]["kind"] == "text"
    assert found["day"]["low"] == "2026-01-01"


def test_words_pictures_and_rows_make_one_query(client: TestClient) -> None:
    brought = client.post("/api/pictures", content=picture(7))
    assert brought.status_code == 201
    digest = brought.json()["id"]
    assert client.get(f"/api/pictures/{digest}").content.startswith(b"\xff\xd8")
    assert ask(client, images=[digest], k=1)["hits"][0]["row_id"] == "r'7"
    both = ask(client, words="red", images=[digest], like=["r'1"], not_like=["r'9"], k=5)
    assert len(both["hits"]) == 5
    assert not {"r'1", "r'9"} & {hit["row_id"] for hit in both["hits"]}
    hits = ask(client, words="thing 33", hybrid=True, k=3, distinct=True, diversity=0.2)
    assert hits["searched"] == "image_vector + caption"
    assert "r'33" in [hit["row_id"] for hit in ask(client, words="thing 33", full_text=True, k=2)["hits"]]
    pages = [hit["row_id"] for skip in (0, 10) for hit in ask(client, words="red", k=10, skip=skip)["hits"]]
    assert len(set(pages)) == 20


FILTERS: list[tuple[dict[str, Any], Any]] = [
    ({"column": "price", "operation": "at_least", "value": "50"}, lambda i: i >= 50),
    ({"column": "price", "operation": "at_most", "value": 3.5}, lambda i: i <= 3.5),
    ({"column": "shop", "value": "it's"}, lambda i: i % 3 == 0),
    ({"column": "shop", "value": "b`c"}, lambda i: i % 3 == 1),
    ({"column": "new", "value": "false"}, lambda i: i % 2 == 1),
    ({"column": "day", "operation": "at_least", "value": "2026-01-20"}, lambda i: i % 20 == 19),
    ({"column": "at", "operation": "at_most", "value": "2026-01-01T12:00:00"}, lambda i: i % 20 == 0),
    ({"column": "note", "operation": "contains", "value": "NOTE 5"}, lambda i: f"note {i}".startswith("note 5")),
    ({"column": "note", "operation": "contains", "value": "50%"}, lambda i: False),
]


@pytest.mark.parametrize(("chosen", "fits"), FILTERS, ids=[json.dumps(chosen) for chosen, _ in FILTERS])
def test_filters_are_columns_and_values(client: TestClient, chosen: dict[str, Any], fits: Any) -> None:
    hits = ask(client, words="thing", filters=[chosen], k=N)["hits"]
    assert {hit["row_id"] for hit in hits} == {f"r'{i}" for i in range(N) if fits(i)}


def test_filters_that_do_not_fit_are_refused(client: TestClient, table: TableRef) -> None:
    dataset = open_dataset(table)
    for column, operation, value, message in [
        ("nope", "is", "1", "no column 'nope'"),
        ("image_vector", "is", "1", "no column 'image_vector'"),
        ("isthmus_shard", "is", "1", "no column"),
        ("price", "is", "1 OR 1=1", "'1 OR 1=1' is not a double"),
        ("price", "is", "nan", "is not a double"),
        ("price", "contains", "1", "contains needs a column of text"),
        ("day", "is", "yesterday", "is not a date"),
        ("new", "is", "maybe", "is not a bool"),
    ]:
        with pytest.raises(ValueError, match=message):
            condition(dataset, [Chosen(column=column, operation=operation, value=value)])  # type: ignore[arg-type]
        asked = {"column": column, "operation": operation, "value": value}
        assert refused(client, words="a", filters=[asked])[0] == 400
    assert facets(dataset)
    assert ask(client, words="a", where="price < 3 AND shop = 'plain'")["hits"][0]["row_id"] == "r'2"
    status, detail = refused(client, words="a", where="1=1; DROP TABLE t")
    assert status == 400
    assert "semicolon" in detail


def test_pictures_come_from_the_tables_own_corpus_alone(client: TestClient) -> None:
    def status(row: str) -> int:
        return client.get("/api/tables/t/picture", params={"row": row}).status_code

    assert status("r'0") == status("r'5") == 200
    assert [status(f"r'{i}") for i in (1, 2, 3, 4)] == [403] * 4, "files and hosts that are no business of the page"
    assert status("r'999") == status("x' OR '1'='1") == 404


def test_roots_hold_what_lies_in_them(tmp_path: Path) -> None:
    (tmp_path / "c.parquet").write_bytes(b"")
    assert corpus_root(f"{tmp_path}/c.parquet") == str(tmp_path)
    assert corpus_root(f"{tmp_path}/*.parquet") == str(tmp_path)
    assert corpus_root("s3://b/corpus/") == "s3://b/corpus"
    assert corpus_root("s3://b/corpus/list.jsonl") == "s3://b/corpus"
    assert is_within("s3://b/corpus/x/1.jpg#offset=3&size=4", ["s3://b/corpus"])
    for uri in (
        "s3://b/corpus2/1.jpg",
        "s3://b/corpus/../x.jpg",
        "s3://c/corpus/1.jpg",
        "http://b/corpus/1.jpg",
        "/b/c",
    ):
        assert not is_within(uri, ["s3://b/corpus", "/nothing"])
    assert is_within(f"{tmp_path}/a.tar#offset=3&size=4", [str(tmp_path)])
    assert not is_within(f"{tmp_path}-other/a.tar", [str(tmp_path)])
    assert not is_within("here.jpg", [corpus_root("/c*.parquet"), "/"]), "not the working directory, not the whole disk"
    assert not is_within(str(tmp_path / "x" / ".." / ".." / "y"), [str(tmp_path)])


def test_what_is_sent_is_limited(client: TestClient) -> None:
    assert client.post("/api/pictures", content=b"x" * (13 << 20)).status_code == 413
    chunks = (b"x" * (1 << 20) for _ in range(14))
    assert client.post("/api/pictures", content=chunks).status_code == 413, "however long it says to be"
    assert client.post("/api/pictures", content=b"no picture").status_code == 400
    bomb = (
        bytes.fromhex("89504e470d0a1a0a0000000d49484452") + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0\0\0\0\0"
    )
    status = client.post("/api/pictures", content=bomb)
    assert status.status_code == 400
    for query in (
        {"words": "a" * 2_001},
        {"words": "a", "k": 201},
        {"words": "a", "skip": 10**9},
        {"like": ["a"] * 17},
    ):
        assert refused(client, **query)[0] == 422
    assert refused(client, words="a", nonsense=1)[0] == 422
    status_code, detail = refused(client, images=["0" * 32])
    assert (status_code, "bring it again" in detail) == (400, True)


def test_a_request_that_takes_too_long_is_given_up(table: TableRef, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from pipelines.search.serving import app as module

    stuck = threading.Event()
    monkeypatch.setattr(module, "_search", lambda *_: stuck.wait(20))
    with TestClient(create_app({"t": table}, ServeSettings(time_limit_s=0.3)), base_url="http://localhost") as client:
        statuses = [refused(client, words="a")[0] for _ in range(6)]
        assert statuses == [504] * 6, "also when all slots are taken"
        stuck.set()


def test_the_token_lets_in_and_nothing_else_does(table: TableRef) -> None:
    app = create_app({"t": table}, ServeSettings(token="a-secret"))
    with TestClient(app, base_url="http://localhost", follow_redirects=False) as client:
        paths = ("/", "/api/tables", "/static/app.js", "/docs", "/openapi.json", "/api/tables/t/picture?row=r'0")
        assert [client.get(path).status_code for path in paths] == [401] * len(paths)
        for wrong in ("", "a-secre", "a-secret2", "ä", "Bearer a-secret"):
            header = f"Bearer {wrong}".encode()
            assert client.get("/api/tables", headers={b"Authorization": header}).status_code == 401  # type: ignore[dict-item]
            assert client.get("/", params={"token": wrong}).status_code == 401
        assert client.get("/api/tables?token=a-secret").status_code == 401, "a token in a link opens the page alone"
        assert client.get("/api/tables", headers={"Authorization": "Bearer a-secret"}).status_code == 200
        opened = client.get("/?token=a-secret&q=red")
        assert (opened.status_code, opened.headers["location"]) == (303, "/?q=red")
        cookie = opened.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/api/tables").status_code == 200, "the cookie"


def test_foreign_pages_cannot_pose_as_the_server_or_frame_it(client: TestClient) -> None:
    assert client.get("/api/tables", headers={"Host": "evil.example"}).status_code == 400
    answer = client.get("/")
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"], "default-src 'self' holds: no inline script"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    assert client.get("/docs").status_code == 200
    assert "http://" not in client.get("/docs").text.replace("http://localhost", "")
    assert "/api/search" in client.get("/openapi.json").json()["paths"]


def test_what_a_job_commits_is_found_soon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.search.serving import app as module

    vectors = np.eye(64, dtype=np.float32)
    rows = pa.table(
        {
            ROW_ID: ["a"], ITEM_ID: ["a"], CAPTION: ["a"], IMAGE_URI: pa.nulls(1, pa.string()),
            "image_vector": pa.array(list(vectors[:1]), pa.list_(pa.float32(), 64)),
        }
    )  # fmt: skip
    ref = TableRef.parse(str(folder / "db" / "growing"))
    provenance = Provenance(encoder=describe("fake").card, modalities=("image",))
    rows = rows.replace_schema_metadata(provenance.to_metadata())
    lance.write_dataset(rows, ref.uri)
    monkeypatch.setattr(module, "_FRESH_S", 0.0)
    with TestClient(create_app({"t": ref}, ServeSettings()), base_url="http://localhost") as client:
        assert len(ask(client, words="x")["hits"]) == 1
        lance.write_dataset(rows.set_column(0, ROW_ID, pa.array(["b"])), ref.uri, mode="append")
        assert len(ask(client, words="x")["hits"]) == 2
