"""Corpus and table on S3: the same rows as on disk, and errors that name the remedy and never a secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lance
import numpy as np
import pytest
from corpora import pairs, write_parquet
from stores import BUCKET, SECRET, moto, options, seaweedfs, upload

from jobs.embed import EmbedConfig, run
from jobs.search import SearchConfig
from jobs.search import run as search

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def quick() -> Iterator[str]:
    with moto() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with seaweedfs(tmp_path_factory.mktemp("weed")) as endpoint:
        yield endpoint


def embed(corpus: str, table: str, endpoint: str, **more: object):  # type: ignore[no-untyped-def]
    stores = {"storage_options": options(endpoint), "corpus_storage_options": options(endpoint)}
    return run(
        EmbedConfig(corpus=corpus, table=table, encoder="fake", actors=1, columns={"key": "id"}, **{**stores, **more})
    )  # type: ignore[arg-type]


def rows(uri: str, endpoint: str | None = None):  # type: ignore[no-untyped-def]
    dataset = lance.dataset(uri, storage_options=options(endpoint) if endpoint else None)
    return dataset.to_table(columns=["row_id", "caption", "image_vector", "text_vector"]).sort_by("row_id")


def check_same_as_local(endpoint: str, tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "c" / "c.parquet", pairs(200))
    run(EmbedConfig(corpus=str(corpus), table=str(tmp_path / "db/t"), encoder="fake", actors=1, columns={"key": "id"}))
    uri = upload(endpoint, tmp_path / "c", "same")
    report = embed(uri, f"s3://{BUCKET}/db/same", endpoint, commit_rows=80, fragment_rows=40)
    assert (report.rows_in, report.written) == (200, 200)

    here, there = rows(str(tmp_path / "db/t.lance")), rows(f"s3://{BUCKET}/db/same.lance", endpoint)
    assert here.drop_columns(["image_vector", "text_vector"]).equals(
        there.drop_columns(["image_vector", "text_vector"])
    )
    for column in ("image_vector", "text_vector"):
        np.testing.assert_allclose(np.array(here[column].to_pylist()), np.array(there[column].to_pylist()), atol=1e-6)
    again = embed(uri, f"s3://{BUCKET}/db/same", endpoint)
    assert (again.rows_in, again.skipped) == (0, 200)


@pytest.mark.heavy
def test_a_quick_store_gives_the_rows_of_the_disk(quick: str, tmp_path: Path) -> None:
    check_same_as_local(quick, tmp_path)


def test_a_real_store_gives_the_rows_of_the_disk(real: str, tmp_path: Path) -> None:
    check_same_as_local(real, tmp_path)


@pytest.mark.slow
def test_a_page_fetches_its_pictures_from_the_corpus_on_s3(quick: str, tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "c" / "c.parquet", pairs(20))
    uri = upload(quick, corpus, "page")
    embed(uri, f"s3://{BUCKET}/db/page", quick)
    report = search(
        SearchConfig(
            table=f"s3://{BUCKET}/db/page",
            words="red cat",
            k=3,
            html=tmp_path / "page.html",
            storage_options=options(quick),
            corpus_storage_options=options(quick),
        )
    )
    assert len(report.hits.to_list()) == 3
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg;base64,") == 3


def test_a_wrong_key_is_refused_by_a_message_without_the_secret(real: str, tmp_path: Path) -> None:
    uri = upload(real, write_parquet(tmp_path / "c.parquet", pairs(5)), "wrong")
    wrong = options(real, secret="another-secret-that-must-not-show")
    with pytest.raises(OSError, match=r"corpus s3://.*check") as caught:
        embed(uri, str(tmp_path / "db" / "t"), real, corpus_storage_options=wrong)
    assert "must-not-show" not in str(caught.value)
    with pytest.raises(OSError, match=r"s3://corpus/db/wrong.*check") as caught:
        embed(uri, f"s3://{BUCKET}/db/wrong", real, storage_options=wrong)
    assert "must-not-show" not in str(caught.value)
    config = EmbedConfig(corpus=uri, table="t/t", encoder="fake", storage_options=options(real))
    assert SECRET not in repr(config)


def test_a_bucket_that_does_not_exist_is_named(quick: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nosuchbucket"):
        embed("s3://nosuchbucket/data", str(tmp_path / "db" / "t"), quick)


@pytest.mark.slow
def test_a_store_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"s3://corpus/data.*endpoint"):
        embed("s3://corpus/data", str(tmp_path / "db" / "t"), "http://127.0.0.1:9")
