"""Promotion changes every user's results: it must rest on a measured gain, and one command must undo it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pytest
from mining_tools import card, write_table

from jobs.promote import PromoteConfig, run
from pipelines.search.retrieval.queries import Query
from pipelines.search.retrieval.search import search
from pipelines.store.storage import TableRef
from pipelines.tables.promotion import answering, promote


def tables(tmp_path: Path) -> tuple[TableRef, TableRef]:
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(80, 16))
    noise = rng.normal(size=(80, 16))
    found = []
    for name, amount in (("products", 2.5), ("better", 0.3)):
        images = texts + amount * noise
        unit = [[v / np.linalg.norm(v) for v in rows.astype(np.float32)] for rows in (images, texts)]
        found.append(write_table(tmp_path / name, *unit, items=[f"i{i}" for i in range(80)], encoder=card(16)))
    return found[0], found[1]


def test_what_is_surely_better_answers_and_one_command_goes_back(tmp_path: Path) -> None:
    table, better = tables(tmp_path)
    before = search(table, Query(like="r3", k=5)).to_list()
    report = run(PromoteConfig(table=str(table), candidate=str(better), metric="R@1"))
    assert report.promoted
    assert report.difference is not None
    assert report.difference["low"] > 0
    assert search(table, Query(like="r3", k=5)).to_list() == search(better, Query(like="r3", k=5)).to_list() != before
    assert search(table, Query(like="r3", k=5), original=True).to_list() == before
    # The version that answers survives a clean-up.
    lance.dataset(better.uri).delete("n = 3")
    lance.dataset(better.uri).cleanup_old_versions(older_than=timedelta(0), error_if_tagged_old_versions=False)
    assert answering(table)[1].count_rows() == 80

    worse = run(PromoteConfig(table=str(table), candidate=str(table), metric="R@1"))
    assert not worse.promoted
    assert worse.answers == "better"
    back = run(PromoteConfig(table=str(table), rollback=True))
    assert back.answers == "products"
    assert search(table, Query(like="r3", k=5)).to_list() == before
    with pytest.raises(ValueError, match="nothing was promoted"):
        run(PromoteConfig(table=str(table), rollback=True))


def test_an_equal_candidate_is_kept_out(tmp_path: Path) -> None:
    table, _ = tables(tmp_path)
    report = run(PromoteConfig(table=str(table), candidate=str(table)))
    assert not report.promoted
    assert answering(table)[0] == table


def test_what_cannot_be_promoted_says_so(tmp_path: Path) -> None:
    import shutil

    table, better = tables(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(better.uri, tmp_path / "elsewhere" / "better.lance")
    with pytest.raises(ValueError, match="must be in the database"):
        promote(table, TableRef.parse(str(tmp_path / "elsewhere" / "better")), 1, "why")
    promote(table, better, 1, "why")
    shutil.rmtree(better.uri)
    with pytest.raises(FileNotFoundError, match="--rollback"):
        search(table, Query(like="r3"))
    with pytest.raises(ValueError, match="give one of --corpus"):
        PromoteConfig(table="t")


def test_a_table_is_read_as_it_was(tmp_path: Path) -> None:
    table, better = tables(tmp_path)
    dataset = lance.dataset(table.uri)
    dataset.tags.create("before", dataset.version)
    dataset.delete("n = 4")
    promote(table, better, lance.dataset(better.uri).version, "it is better")
    for version in ("before", "1"):
        then = TableRef.parse(f"{table}@{version}", versions=True)
        assert (then.uri, then.label, str(then)) == (table.uri, f"products@{version}", f"{table}@{version}")
        assert answering(then)[1].count_rows() == 80
        hits = search(then, Query(like="r3", k=79))
        assert "r4" in hits.rows["row_id"].to_pylist(), "what was deleted later, and no table that was promoted"
    assert answering(table)[0].name == "better"
    with pytest.raises(FileNotFoundError, match=r"no version or tag 'after'; kept are \d+ from 1 to \d+; tags: before"):
        search(TableRef.parse(f"{table}@after", versions=True), Query(like="r3"))
    with pytest.raises(FileNotFoundError, match="no version 99"):
        answering(TableRef.parse(f"{table}@99", versions=True))
    with pytest.raises(ValueError, match="give a version or a tag after '@'"):
        TableRef.parse(f"{table}@", versions=True)
    with pytest.raises(ValueError, match="may hold letters"):
        TableRef.parse(f"{table}@1")  # commands that write accept no version
