"""What cannot be mined is refused before anything changes; what is mined records its origin."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import lance
import numpy as np
import psutil
import pyarrow as pa
import pytest
from mining_tools import card, write_table

from pipelines.store.storage import TableRef
from pipelines.tables.provenance import EncoderMismatchError
from pipelines.train.mining.mine import MiningRecallError, mine
from pipelines.train.mining.mined import read_mined
from pipelines.train.mining.mining_settings import MiningSettings

N, DIM = 240, 16


def unit(n: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def table(tmp_path: Path) -> TableRef:
    image = np.repeat(unit(N // 2, 0), 2, axis=0)
    text = image + 0.5 * unit(N, 1)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    return write_table(tmp_path / "db" / "t", list(image), list(text), items=[f"i{i // 2}" for i in range(N)])


def rows_of(ref: TableRef) -> list[dict]:
    return read_mined(ref).negatives.to_pylist()


@pytest.mark.usefixtures("ray_session")
def test_the_mined_table_records_encoder_table_version_and_settings(table: TableRef) -> None:
    lance.dataset(table.uri).delete("n >= 200")
    lance.dataset(table.uri).tags.create("whole", 1)
    out = table.sibling("hard")
    report = mine(table, out, MiningSettings(tag="whole", negatives=3, margin="auto"))
    mined = read_mined(out)
    assert (mined.table, mined.table_version, mined.encoder) == (str(table), 1, card(DIM))
    assert mined.settings["negatives"] == 3
    assert mined.settings["margin_used"] == pytest.approx(report.margin, abs=1e-6)
    assert {int(r["row_id"][1:]) for r in mined.negatives.to_pylist()} & set(range(200, N)), "of version 1, not 2"
    mined.check_encoder(card(DIM), "finetune")
    with pytest.raises(EncoderMismatchError, match="finetune: the negatives were mined with 'fake'"):
        mined.check_encoder(card(DIM + 1), "finetune")
    later = mine(table, out, MiningSettings())
    assert later.table_version > 1
    assert read_mined(out, version=report.out_version).negatives.equals(mined.negatives), "the old version stays"


@pytest.mark.usefixtures("ray_session")
def test_two_runs_give_equal_tables_and_the_report_adds_up(table: TableRef) -> None:
    for method in ("exact", "ann"):
        asked = MiningSettings(method=method, rows_per_task=50, anchors=180, seed=3)
        first, second = table.sibling(f"{method}1"), table.sibling(f"{method}2")
        report = mine(table, first, asked)
        mine(table, second, asked)
        rows = rows_of(first)
        assert rows == rows_of(second)
        assert report.out_rows == len(rows) == sum(d.kept for d in report.directions)
        for d in report.directions:
            assert (d.anchors, d.recall >= 0.9) == (180, True)
            assert sum(d.scores["positives"]) == 180
            assert sum(d.scores["negatives"]) == d.kept
            assert len(d.scores["edges"]) == 21
            assert d.anchors_served == len({r["row_id"] for r in rows if r["direction"] == d.direction})


@pytest.mark.usefixtures("ray_session")
def test_a_task_killed_after_it_wrote_is_run_again_and_no_row_stands_twice(table: TableRef) -> None:
    asked = MiningSettings(rows_per_task=20)
    mine(table, table.sibling("quiet"), asked)
    killed: list[int] = []
    done = threading.Event()

    def kill_miners() -> None:
        """Kill three of this test's own workers while they mine, once there are files."""
        while not done.is_set() and len(killed) < 3:
            for child in psutil.Process().children(recursive=True):
                try:
                    if child.name() == "ray::mine_block" and child.pid not in killed:
                        child.kill()
                        killed.append(child.pid)
                        break
                except psutil.Error:
                    continue
            time.sleep(0.05)

    thread = threading.Thread(target=kill_miners)
    thread.start()
    try:
        mine(table, table.sibling("disturbed"), asked)
    finally:
        done.set()
        thread.join()
    assert killed, "the test killed nothing"
    assert rows_of(table.sibling("disturbed")) == rows_of(table.sibling("quiet"))


def test_what_cannot_be_mined_is_refused_in_one_line(table: TableRef, tmp_path: Path) -> None:
    out = TableRef.parse(str(tmp_path / "db" / "out"))
    ids = [f"i{i}" for i in range(4)]
    two = write_table(tmp_path / "db" / "two", unit(4, 0), unit(4, 1), items=ids, encoder=card(DIM, spaces=("a", "b")))
    empty = write_table(tmp_path / "db" / "empty", [], [], items=[], dim=DIM)
    lone = TableRef.parse(str(tmp_path / "db" / "lone"))
    whole = lance.dataset(two.uri).to_table().drop_columns(["text_vector"])
    lance.write_dataset(whole, lone.uri)
    other = TableRef.parse(str(tmp_path / "db" / "other"))
    lance.write_dataset(pa.table({"x": [1]}), other.uri)
    refused = [
        (two, out, MiningSettings(), "different spaces"),
        (empty, out, MiningSettings(), "holds no rows"),
        (lone, out, MiningSettings(), "has no text_vector"),
        (other, out, MiningSettings(), "no isthmus provenance"),
        (table, other, MiningSettings(), "is not replaced"),
        (table, table, MiningSettings(), "is not replaced"),
        (table, out, MiningSettings(version=99), "has no version 99; kept are 1 from 1 to 1"),
        (table, out, MiningSettings(tag="gold"), "has no version or tag 'gold'"),
        (table, out, MiningSettings(where="nosuch = 1"), "nosuch"),
    ]
    for source, target, asked, words in refused:
        with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
            mine(source, target, asked)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="not found"):
        mine(out, out, MiningSettings())
    assert not Path(out.uri).exists()
    with pytest.raises(ValueError, match="holds no mined negatives"):
        read_mined(table)


@pytest.mark.usefixtures("ray_session")
def test_nothing_is_written_where_recall_is_low_or_nothing_is_left(table: TableRef) -> None:
    out = table.sibling("hard")
    with pytest.raises(MiningRecallError, match="1 of 15 lists find 0"):
        mine(table, out, MiningSettings(method="ann", probes=1, directions=("text_to_image",)))
    with pytest.raises(ValueError, match=r"no negative is left .*skipped_ranks"):
        mine(table, out, MiningSettings(skip=N))
    with pytest.raises(ValueError, match="no row among those where n < 0 has both vectors"):
        mine(table, out, MiningSettings(where="n < 0"))
    assert not Path(out.uri).exists() or not lance_versions(out)


def lance_versions(ref: TableRef) -> list[Path]:
    return list((Path(ref.uri) / "_versions").glob("*"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"negatives": 0}, "negatives 0: give at least 1"),
        ({"margin": 1.5}, "margin 1.5"),
        ({"version": 1, "tag": "a"}, "give one of the two"),
        ({"directions": ()}, "no direction"),
        ({"directions": ("sideways",)}, "'sideways'"),
        ({"min_recall": 0.0}, "min_recall 0.0"),
        ({"near_duplicate_text": 3.0}, "near_duplicate_text 3.0"),
    ],
)
def test_settings_refuse_what_cannot_be(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MiningSettings(**wrong)
