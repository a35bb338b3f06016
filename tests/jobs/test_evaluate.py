"""`isthmus evaluate` from the command line: a table without a model, a corpus, comparisons, no leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import isthmus
from corpora import pairs, write_parquet

pytestmark = pytest.mark.usefixtures("shared_ray")


def evaluated(*arguments: object) -> dict[str, Any]:
    done = isthmus("evaluate", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures; `split` is test for every fourth, `kind` is the first word of the caption."""
    path = write_parquet(tmp_path_factory.mktemp("evaluate") / "c.parquet", pairs(40))
    rows = pq.read_table(path)
    rows = rows.append_column("split", [["test" if i % 4 == 0 else "train" for i in range(40)]])
    rows = rows.append_column("kind", [[caption.split()[0] for caption in rows["caption"].to_pylist()]])
    pq.write_table(rows, path)
    return path


@pytest.fixture(scope="module")
def table(corpus: Path) -> Path:
    made = corpus.parent / "db" / "t"
    done = isthmus("embed", corpus, "--table", made, "--encoder", "fake", "--columns.key", "id")
    assert done.returncode == 0, done.stderr
    return made


def test_a_table_gives_one_json_object_and_pages(table: Path, tmp_path: Path) -> None:
    page, text = tmp_path / "p.html", tmp_path / "p.md"
    found = evaluated(table, "--slice", "kind", "--html", page, "--markdown", text)
    for way in ("text_to_image", "image_to_text"):
        result = found[way]
        assert (result["queries"], result["gallery"]) == (40, 40)
        assert result["R@1"] <= result["R@5"] <= result["R@10"] <= 1
        low, high = result["intervals"]["R@10"]
        assert low <= result["R@10"] <= high
        assert sum(part["queries"] for part in result["slices"]["kind"].values()) == 40
    assert "image_to_image" not in found
    assert "data:image/png" in page.read_text()
    assert "text to image" in text.read_text()


def test_a_corpus_is_embedded_and_gives_what_its_table_gives(table: Path, corpus: Path) -> None:
    mine = evaluated(corpus, "--encoder", "fake", "--columns.key", "id", "--split", "test")
    assert mine["text_to_image"] == evaluated(table, "--split", "test")["text_to_image"]
    assert mine["text_to_image"]["gallery"] == 10


def test_a_table_compared_with_itself_differs_by_nothing(table: Path) -> None:
    for metric, gain in evaluated(table, "--compare", table)["difference"].items():
        assert (gain["mean"], gain["p_value"]) == (0.0, 1.0), metric


def test_leaked_rows_do_not_ask_but_stay_in_the_gallery(table: Path) -> None:
    """Without them in the gallery the others would be easier to find, and the two metrics could not be compared."""
    leaks = ("--train-where", "year < 2000", "--near-duplicate", "1")
    whole = evaluated(table)["text_to_image"]
    counted = evaluated(table, *leaks)
    excluded = evaluated(table, *leaks, "--exclude-leaked")
    assert 20 <= counted["leakage"]["leaked"] < 40
    assert counted["text_to_image"] == whole
    left = excluded["text_to_image"]
    assert (left["queries"], left["gallery"]) == (40 - counted["leakage"]["leaked"], 40)
    assert excluded["with_leaked"]["text_to_image"]["MRR"] == pytest.approx(whole["MRR"])


def test_zero_shot_is_of_the_split_that_is_evaluated(table: Path) -> None:
    classes = "red,green,blue,cat,dog,boat,house,tree,river,stone,bird,cloud,lamp,chair,bread,红色,小狗,船,房子,树"
    found = evaluated(table, "--split", "test", "--classes", classes, "--class-column", "kind")["zero_shot"]
    assert (found["classes"], found["pictures"]) == (20, 10)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--where", "year > 3000"], 1, "no row"),
        (["--where", "nosuch = 1"], 1, "columns are row_id"),
        (["--version", "99"], 1, "99"),
        (["--encoder", "fake-32"], 1, "was made by 'fake'"),
        (["--exclude-leaked"], 2, "needs --train"),
        (["--slice", "nosuch"], 1, "no column 'nosuch'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: list[str], code: int, words: str, table: Path) -> None:
    done = isthmus("evaluate", table, *arguments)
    assert done.returncode == code, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
