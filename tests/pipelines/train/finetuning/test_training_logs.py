"""Logs and pages of a run must open by themselves, anywhere, even if the run was cut short."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
import stores
from PIL import Image

from pipelines.store.storage import Storage
from pipelines.train.finetuning.checkpoints import RunFolder
from pipelines.train.finetuning.logs import page, plot, write_logs

METRICS = {f"{way}R@{k}": 0.1 * k for way in ("", "text_to_image ", "image_to_text ") for k in (1, 5, 10)} | {
    "MRR": 0.3
}
HISTORY = [
    {"step": 0, "epoch": 0.0, "validation": METRICS},
    {"step": 1, "epoch": 0.5, "loss": 2.0, "scale": 14.0, "learning_rate": 0.1, "gradient_norm": 1.0},
    {"step": 2, "epoch": 1.0, "loss": 1.5, "scale": 14.1, "learning_rate": 0.05, "gradient_norm": 0.9},
    {"step": 2, "epoch": 1.0, "validation": {**METRICS, "R@1": 0.4}},
]


def test_the_log_reads_back_and_the_page_carries_its_picture(tmp_path: Path) -> None:
    folder = RunFolder(uri=str(tmp_path / "my <run>"), storage=Storage())
    files = write_logs(folder, HISTORY)
    assert [json.loads(line) for line in (tmp_path / "my <run>" / "log.jsonl").read_text().splitlines()] == HISTORY
    assert all(Path(file).is_file() for file in files)
    html = (tmp_path / "my <run>" / "training.html").read_text()
    assert "my &lt;run&gt;" in html
    assert "<run>" not in html
    found = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert found
    assert Image.open(io.BytesIO(base64.b64decode(found[1]))).size == (1200, 480)
    assert not re.search(r'(?:src|href)="(?!data:)', html), "a page that needs the network is empty on a train"
    cells = re.findall(r"<td>([^<]*)</td>", html)
    assert cells[:6] == ["0", "0.0", "0.100", "0.500", "1.000", "0.300"]
    assert cells[8] == "0.400"


def test_tensorboard_shows_the_run_once_however_often_it_is_written(tmp_path: Path) -> None:
    """A resumed run that keeps the former events beside its own draws every curve twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(uri=str(tmp_path / "run"), storage=Storage())
    write_logs(folder, HISTORY[:2])
    write_logs(folder, HISTORY)
    events = list((tmp_path / "run" / "tensorboard").glob("events.*"))
    assert len(events) == 1
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [(1, 2.0), (2, 1.5)]
    assert [e.step for e in board.Scalars("validation/R_at_1")] == [0, 2]
    assert board.Scalars("validation/text_to_image/R_at_5")[0].value == pytest.approx(0.5)


@pytest.mark.parametrize("history", [[], HISTORY[:1], HISTORY[1:2]], ids=["nothing", "no step", "no validation"])
def test_a_run_that_was_cut_short_has_a_plot(history: list[dict[str, object]]) -> None:
    png = plot(history)
    assert Image.open(io.BytesIO(png)).format == "PNG"
    assert page("x", png, history).count("<tr>") == 1 + sum("validation" in row for row in history)


def test_curves_are_drawn() -> None:
    image = Image.open(io.BytesIO(plot(HISTORY))).convert("RGB")
    empty = Image.open(io.BytesIO(plot([]))).convert("RGB")
    blue = [
        sum(count for count, (r, g, b) in (i.getcolors(1 << 24) or []) if b > r + 60 and b > g + 30)
        for i in (image, empty)
    ]
    assert blue[0] > 100
    assert blue[1] == 0


def test_logs_on_s3() -> None:
    with stores.moto() as endpoint:
        folder = RunFolder(uri=f"s3://{stores.BUCKET}/runs/one", storage=Storage.from_options(stores.options(endpoint)))
        files = write_logs(folder, HISTORY)
        assert files == [f"s3://{stores.BUCKET}/runs/one/training.{kind}" for kind in ("png", "html")]
        raw = folder.read("log.jsonl")
        assert raw is not None
        assert len(raw.splitlines()) == 4
