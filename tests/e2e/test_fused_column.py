"""A corpus that changes after its vectors were fused: each new row is fused when it is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import isthmus
from corpora import Pair, pairs, picture, write_parquet
from engines import on_engine
from fusion_tools import assert_fused

from jobs.embed import EmbedConfig
from jobs.embed import run as embed
from jobs.fuse import FuseConfig
from jobs.fuse import run as fuse
from jobs.rejects import RetryConfig, retry
from jobs.sync import SyncConfig
from jobs.sync import run as sync
from pipelines.rows.contract import ROW_ID
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_dataset

pytestmark = pytest.mark.usefixtures("engine")


def options(corpus: Path, table: Path) -> dict[str, object]:
    return {
        "corpus": str(corpus),
        "table": str(table),
        "encoder": "fake",
        "columns": {"key": "id"},
        "block_rows": 16,
        **on_engine(),
    }


def ids(table: TableRef) -> set[str]:
    return set(open_dataset(table).to_table(columns=[ROW_ID])[ROW_ID].to_pylist())


def test_rows_come_change_and_go_and_each_is_fused(tmp_path: Path) -> None:
    items, corpus, table = pairs(60), tmp_path / "corpus", tmp_path / "db" / "t"
    ref = TableRef.parse(str(table))
    write_parquet(corpus / "a.parquet", items[:40])
    embed(EmbedConfig(**options(corpus, table)))  # type: ignore[arg-type]
    assert fuse(FuseConfig(table=str(table), image_weight=0.4)).fused.written == 40
    made = assert_fused(ref)

    write_parquet(corpus / "b.parquet", items[40:])
    embed(EmbedConfig(**options(corpus, table)))  # type: ignore[arg-type]
    assert len(ids(ref)) == 60
    assert assert_fused(ref) == made, "new rows are fused by the numbers of the old ones"

    changed = [Pair(p.key, picture(900 + i), f"another {p.caption}", p.year) for i, p in enumerate(items[40:55])]
    broken = Pair("broken", b"no picture", "red", 2000)
    write_parquet(corpus / "b.parquet", [*changed, broken])
    report = sync(SyncConfig(**options(corpus, table), max_delete_rate=1))  # type: ignore[arg-type]
    assert (report.replaced, report.removed, report.rejected) == (15, 5, {"not_an_image": 1})
    assert assert_fused(ref) == made
    retry(RetryConfig(table=str(table), reason=["not_an_image"]))
    assert fuse(FuseConfig(table=str(table))).fused.outcome == "complete"
    assert len(ids(ref)) == 55
    found = isthmus("search", str(table), "another red", "--vector", "fused_vector", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["column"] == "fused_vector"
    about = isthmus("info", str(table), "--json")
    assert json.loads(about.stdout)["fused"]["image_weight"] == 0.4
    assert isthmus("maintain", str(table), "--keep-versions", "1").returncode == 0
    assert assert_fused(ref) == made
