"""A table that an earlier version began is opened, finished and synced: people's tables outlive our code."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import isthmus

from pipelines import open_table

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "table_from_before.tar.gz"
FOLDER = Path("/tmp/isthmus-table-from-before")
TABLE = FOLDER / "db" / "t"
OPTIONS = ("--table", TABLE, "--encoder", "fake-8", "--columns.key", "id", "--engine", "process", "--json")


@pytest.fixture
def corpus() -> Iterator[Path]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    with tarfile.open(FIXTURE) as tar:
        tar.extractall(FOLDER.parent, filter="data")
    yield FOLDER / "corpus"
    shutil.rmtree(FOLDER)


def run(*arguments: object) -> dict[str, object]:
    done = isthmus(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_table_from_before_is_opened_finished_and_synced(corpus: Path) -> None:
    assert len(open_table(str(TABLE)).search(words="red", k=10).to_list()) == 4
    rest = run("embed", corpus, *OPTIONS)
    assert (rest["rows_in"], rest["written"], rest["skipped"]) == (12, 12, 4)
    again = run("embed", corpus, *OPTIONS)
    assert (again["rows_in"], again["skipped"]) == (0, 16)
    (corpus / "b.parquet").unlink()
    synced = run("sync", corpus, *OPTIONS)
    assert (synced["rows_in"], synced["removed"], synced["files_gone"]) == (0, 8, 1)
    found = open_table(str(TABLE)).search(words="red", k=100).to_list()
    assert sorted(row["row_id"] for row in found) == [f"{n:05d}" for n in range(8)]
