"""`isthmus mine` from the command line, on a table that `isthmus embed` made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import isthmus
from corpora import pairs, write_parquet

from pipelines.store.storage import TableRef
from pipelines.train.mining.mined import read_mined

pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    corpus = write_parquet(folder / "c.parquet", pairs(60))
    done = isthmus("embed", corpus, "--table", folder / "db" / "t", "--encoder", "fake", "--columns.key", "id")
    assert done.returncode == 0, done.stderr
    return folder / "db" / "t"


def test_mining_writes_a_table_a_plot_and_one_json_object(table: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "db" / "hard", tmp_path / "scores.png"
    done = isthmus("mine", table, "--out", out, "--negatives", 3, "--margin", "auto", "--plot", picture, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    mined = read_mined(TableRef.parse(str(out)))
    assert report["out_rows"] == mined.negatives.num_rows > 0
    assert (report["table_version"], report["encoder"]["name"]) == (mined.table_version, "fake")
    assert [d["recall"] for d in report["directions"]] == [1.0, 1.0]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_terminal_shows_yield_and_reasons(table: Path, tmp_path: Path) -> None:
    done = isthmus("mine", table, "--out", tmp_path / "db" / "hard", "--directions", "image_to_text", "--margin", "0")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "image_to_text 60" in said
    assert "same item 60" in said
    assert "text_to_image" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--version", "99"], 1, "has no version 99"),
        (["--tag", "gold"], 1, "has no version or tag 'gold'"),
        (["--margin", "2"], 2, "margin"),
        (["--where", "nosuch = 1"], 1, "columns are row_id"),
        (["--plot", "x.nosuch"], 1, "nosuch"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list[str], code: int, words: str, table: Path, tmp_path: Path
) -> None:
    done = isthmus("mine", table, "--out", tmp_path / "db" / "hard", *arguments)
    assert done.returncode == code, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "db").exists()
