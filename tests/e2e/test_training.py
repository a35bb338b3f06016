"""Fine-tuning, end to end: it learns, it resumes to the same bits, it does not care how many processes there are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from training_tools import coloured_shape, latent_table

from encoders.registry import load
from jobs.finetune import FinetuneConfig, run

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("towers")
    return f"{tiny_models.tiny_vit(folder / 'vit')}+{tiny_models.tiny_bert(folder / 'bert')}"


@pytest.fixture(scope="module")
def table(towers: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(latent_table(tmp_path_factory.mktemp("db") / "latent", towers))


def config(table: str, towers: str, out: Path, **changes: Any) -> FinetuneConfig:
    given = {
        "corpus": table,
        "encoder": towers,
        "out": str(out),
        "dim": 8,
        "epochs": 8,
        "batch_size": 32,
        "learning_rate": 0.02,
        "warmup_steps": 2,
        "validation_fraction": 0.2,
    }
    return FinetuneConfig(**{**given, **changes})


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in Path(f"{out}.run/log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def assert_equal(a: Path, b: Path, tolerance: float = 0.0) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if tolerance:
            torch.testing.assert_close(second[name], tensor, rtol=tolerance, atol=tolerance, msg=name)
        else:
            assert torch.equal(second[name], tensor), name


@pytest.mark.usefixtures("ray_session")
def test_heads_learn_and_processes_and_chunks_change_nothing(table: str, towers: str, tmp_path: Path) -> None:
    """Two workers that see other negatives than one train another model, and nobody notices."""
    alone = run(config(table, towers, tmp_path / "alone"))
    assert alone.features == ["image", "text"]
    assert alone.best["R@10"] > alone.start["R@10"] + 0.3
    run(config(table, towers, tmp_path / "two", workers=2))
    run(config(table, towers, tmp_path / "chunks", chunk_size=7))
    for other in ("two", "chunks"):
        assert losses(tmp_path / other) == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
        assert_equal(tmp_path / "alone", tmp_path / other, 1e-4)
    encoder = load(str(tmp_path / "alone"))
    assert encoder.encode_texts(["a word"]).vectors.shape == (1, 8)

    again = run(config(table, towers, tmp_path / "alone"))
    assert (again.resumed_at, again.steps) == (alone.steps, alone.steps)
    with pytest.raises(ValueError, match=r"another config \(train.learning_rate: 0.02 then, 0.5 now"):
        run(config(table, towers, tmp_path / "alone", learning_rate=0.5))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.heavy)])
@pytest.mark.usefixtures("ray_session")
def test_a_worker_that_is_killed_costs_steps_and_no_bits(table: str, towers: str, tmp_path: Path, workers: int) -> None:
    """A worker's death must neither hang the run nor change what it learns."""
    options = {
        "workers": workers,
        "epochs": 60,
        "checkpoint_every": 3,
        "loss": ["memory_bank:size=64,warmup_steps=3"],
        "dropout": 0.1,
    }
    run(config(table, towers, tmp_path / "calm", **options))
    killed: list[int] = []

    def kill(row: dict[str, Any]) -> None:
        if row.get("loss") and row["step"] >= 40 * (len(killed) + 1) and len(killed) < 2:
            killed.append(_kill_training_worker())

    report = run(config(table, towers, tmp_path / "hit", **options), kill)
    assert len(killed) == 2
    assert report.steps == report.epochs * 5
    assert_equal(tmp_path / "calm", tmp_path / "hit", 0.0 if workers == 1 else 1e-5)


def _kill_training_worker() -> int:
    """SIGKILL to the process of Ray Train's worker; its pid."""
    import psutil

    for process in psutil.process_iter(["pid", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if line.startswith("ray::") and "TrainWorker" in line:
            os.kill(process.info["pid"], signal.SIGKILL)
            return int(process.info["pid"])
    raise AssertionError("no training worker is running")


@pytest.mark.heavy
def test_a_driver_that_is_killed_goes_on_where_it_was(table: str, towers: str, tmp_path: Path) -> None:
    """The same command, again and again, ends with the weights of a run that nobody disturbed."""
    shared = [
        "--dim",
        "8",
        "--epochs",
        "200",
        "--batch-size",
        "32",
        "--learning-rate",
        "0.02",
        "--checkpoint-every",
        "7",
    ]
    command = [sys.executable, "-m", "jobs.cli", "--json", "finetune", table, "--encoder", towers, *shared]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def start(out: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    hit = tmp_path / "hit"
    latest = Path(f"{hit}.run/latest.pt")
    done_before = 0
    for _ in range(2):
        process = start(hit)
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None and _step(latest) < done_before + 30:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done_before = _step(latest)
        assert done_before > 0
    out, err = start(hit).communicate(timeout=300)
    report = json.loads(out)
    # The workers of a dead driver go on for a moment; they take the same steps.
    assert report["resumed_at"] >= done_before, err
    calm = start(tmp_path / "calm")
    calm.communicate(timeout=300)
    assert_equal(tmp_path / "calm", hit)


def _step(latest: Path) -> int:
    try:
        return int(torch.load(latest, weights_only=True)["step"])
    except (FileNotFoundError, EOFError, RuntimeError):
        return 0


@pytest.mark.usefixtures("ray_session")
def test_whole_towers_train_on_pictures_through_ray_data(tmp_path: Path) -> None:
    """The path with pixels: decoded and augmented on tasks; unequal shares and a short last batch must not hang."""
    import itertools

    import pyarrow as pa
    import pyarrow.parquet as pq
    from training_tools import COLOURS, SHAPES

    pairs = list(itertools.product(COLOURS, SHAPES)) * 4
    rows = pa.table(
        {
            "key": [f"k{i}" for i in range(len(pairs))],
            "image": pa.array([coloured_shape(*pair, size=28 + i) for i, pair in enumerate(pairs)], pa.binary()),
            "caption": [" ".join(pair) for pair in pairs],
        }
    )
    (tmp_path / "corpus").mkdir()
    pq.write_table(rows, tmp_path / "corpus" / "a.parquet")
    clip = str(tiny_models.tiny_clip(tmp_path / "clip"))
    options = {
        "dim": 2,
        "epochs": 2,
        "batch_size": 15,
        "learning_rate": 1e-3,
        "train_image": "full",
        "train_text": "last:1",
        "augment": "light",
        "columns": {"key": "key"},
    }
    one = run(config(str(tmp_path / "corpus"), clip, tmp_path / "one", **options))
    assert one.features == []
    two = run(
        config(str(tmp_path / "one.run" / "samples"), clip, tmp_path / "two", workers=2, **{**options, "columns": {}})
    )
    assert one.steps == two.steps
    assert_equal(tmp_path / "one", tmp_path / "two", 1e-4)
    before, after = weights(Path(clip)), weights(tmp_path / "one")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("vision_model") for name in changed)
    assert not any(name.startswith("text_model.embeddings") for name in changed)
    assert load(str(tmp_path / "one")).encode_texts(["red circle"]).vectors.shape[0] == 1
    from transformers import CLIPModel

    assert CLIPModel.from_pretrained(tmp_path / "one")


@pytest.mark.usefixtures("ray_session")
def test_a_loss_that_is_no_number_names_its_rows_and_keeps_the_checkpoint(towers: str, tmp_path: Path) -> None:
    from pipelines.training.run import TrainingDivergedError

    table = str(latent_table(tmp_path / "db", towers, 60, bad_row=7))
    for _ in range(2):
        with pytest.raises(TrainingDivergedError, match=r"rows of the batch: .*r\d+"):
            run(config(table, towers, tmp_path / "out", validation_fraction=0.0, batch_size=60))
    assert "r7" in json.loads(Path(tmp_path / "out.run" / "diverged.json").read_text())["row_ids"]
    assert torch.load(tmp_path / "out.run" / "latest.pt", weights_only=True)["step"] == 0


@pytest.mark.usefixtures("ray_session")
def test_a_teachers_table_and_mined_negatives_take_part(table: str, towers: str, tmp_path: Path) -> None:
    """A teacher of another dimension is met by a projection; negatives of another encoder are refused."""
    from pipelines.embedding.project import project_table
    from pipelines.mining.mine import mine
    from pipelines.mining.settings import MiningSettings
    from pipelines.provenance import EncoderMismatchError
    from pipelines.storage import TableRef

    first = run(config(table, towers, tmp_path / "first", epochs=3))
    ref = TableRef.parse(str(tmp_path / "db" / "projected"))
    project_table(TableRef.parse(table), str(tmp_path / "first"), ref)
    mined = TableRef.parse(str(tmp_path / "db" / "mined"))
    mine(ref, mined, MiningSettings(margin=0.0))
    second = run(
        config(
            table,
            str(tmp_path / "first"),
            tmp_path / "second",
            epochs=4,
            negatives=str(mined),
            teacher=table,
            loss=["infonce", "distill_l2:weight=0.5", "distill_kl:weight=0.2,relation=text"],
        )
    )
    assert second.best["R@10"] >= first.best["R@10"]
    assert second.table_versions.keys() == {"samples", "teacher", "negatives"}
    with pytest.raises(EncoderMismatchError, match="mined with"):
        run(config(table, towers, tmp_path / "third", negatives=str(mined)))
    short = str(latent_table(tmp_path / "db" / "short", towers, 50))
    with pytest.raises(ValueError, match="has no row for"):
        run(config(table, towers, tmp_path / "fourth", loss=["distill_l2"], teacher=short))


@pytest.mark.usefixtures("ray_session")
def test_mining_anew_is_one_option(table: str, towers: str, tmp_path: Path) -> None:
    report = run(config(table, towers, tmp_path / "out", epochs=4, remine_every=2))
    assert report.table_versions.keys() == {"samples", "negatives"}
    assert load(str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": ["nce"]}, "not known"),
        ({"train_image": "half"}, "give frozen, head"),
        ({"train_image": "frozen", "train_text": "frozen"}, "nothing trains|both towers are frozen"),
        ({"where": "n = 3", "validation_fraction": 0.0}, "1 rows"),
        ({"group": "colour"}, "no such column"),
        ({"train_image": "last:99"}, "it has"),
        ({"train_image": "full", "train_text": "full", "gradient_checkpointing": False, "where": "n <"}, "where"),
    ],
)
@pytest.mark.usefixtures("ray_session")
def test_what_cannot_train_is_refused_in_one_line(
    table: str, towers: str, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(Exception, match=said) as caught:
        run(config(table, towers, tmp_path / "out", **changes))
    assert "\n" not in str(caught.value)
