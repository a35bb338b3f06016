"""A fine-tuning run that is killed at any moment ends with exactly the weights of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_models
import torch
from training_tools import (
    assert_same_weights,
    heads_config,
    latent_table,
    latest_step,
    shapes_corpus,
    training_workers,
    vit_and_bert,
)

from jobs.finetune import FinetuneConfig, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
_FEATURES = {"epochs": 80, "checkpoint_every": 3, "dropout": 0.1, "loss": ["memory_bank:size=64,warmup_steps=3"]}
_PIXELS: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 12,
    "learning_rate": 1e-3,
    "checkpoint_every": 2,
    "train_image": "full",
    "train_text": "full",
    "augment": "light",
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    return vit_and_bert(tmp_path_factory.mktemp("towers"))


@pytest.fixture(scope="module")
def table(towers: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(latent_table(tmp_path_factory.mktemp("db") / "latent", towers, 120))


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A table with pictures, and the tiny CLIP that embedded it."""
    folder = tmp_path_factory.mktemp("pixels")
    clip = tiny_models.tiny_clip(folder / "clip")
    command = [
        sys.executable, "-m", "jobs.cli", "embed", str(shapes_corpus(folder / "corpus")), "--table",
        str(folder / "db" / "t"), "--encoder", str(clip), "--columns.key", "id", "--thumbnails", "40",
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, env=os.environ | {"RAY_ADDRESS": "local"})
    return str(folder / "db" / "t"), str(clip)


def kill_worker(workers: int) -> int:
    """SIGKILL one of the training processes of this session's Ray; return its pid, or 0 if there is none."""
    found = training_workers()
    if len(found) < workers:
        return 0
    chosen = random.choice(found)
    chosen.send_signal(signal.SIGKILL)
    return chosen.pid


def run_with_kills(config: FinetuneConfig, steps: list[int]) -> tuple[Any, int]:
    """Run, and kill a training process as soon as each of these steps is logged; return report and number killed."""
    left = sorted(steps)
    killed = 0

    def on_row(row: dict[str, Any]) -> None:
        nonlocal killed
        if left and "loss" in row and row["step"] >= left[0] and kill_worker(config.workers):
            left.pop(0)
            killed += 1

    return run(config, on_row), killed


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.heavy)])
def test_a_killed_worker_costs_no_bits(table: str, towers: str, tmp_path: Path, kills: int) -> None:
    """Memory bank, dropout, optimiser and order must all be restored."""
    run(heads_config(table, towers, tmp_path / "calm", **_FEATURES))
    steps = sorted(random.sample(range(5, 200), kills))
    report, killed = run_with_kills(heads_config(table, towers, tmp_path / "hit", **_FEATURES), steps)
    assert killed == kills, steps
    assert report.steps == latest_step(tmp_path / "calm.run")
    assert_same_weights(tmp_path / "calm", tmp_path / "hit")
    calm, hit = (Path(f"{tmp_path}/{name}.run/log.jsonl").read_text() for name in ("calm", "hit"))
    assert calm == hit, "the log tells each step once"


@pytest.mark.heavy
@pytest.mark.usefixtures("ray_session")
def test_one_of_two_killed_workers_takes_the_other_along(table: str, towers: str, tmp_path: Path) -> None:
    options = {**_FEATURES, "workers": 2}
    run(heads_config(table, towers, tmp_path / "calm", **options))
    _, killed = run_with_kills(heads_config(table, towers, tmp_path / "hit", **options), [random.randint(5, 150)])
    assert killed == 1
    assert_same_weights(tmp_path / "calm", tmp_path / "hit", 1e-5)


@pytest.mark.heavy
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("workers", "sharding"), [(1, "auto"), (2, "auto"), (2, "fsdp")])
def test_a_killed_worker_on_pictures(pixels: tuple[str, str], tmp_path: Path, workers: int, sharding: str) -> None:
    options = {**_PIXELS, "workers": workers, "sharding": sharding}
    run(heads_config(*pixels, tmp_path / "calm", **options))
    step = random.randint(2, 25)
    _, killed = run_with_kills(heads_config(*pixels, tmp_path / "hit", **options), [step])
    assert killed == 1, step
    assert_same_weights(tmp_path / "calm", tmp_path / "hit", 0.0 if workers == 1 else 1e-5)


def flags(config: FinetuneConfig) -> list[str]:
    """The command line of a config."""
    given = config.model_dump(exclude_unset=True)
    command = [sys.executable, "-m", "jobs.cli", "finetune", given.pop("corpus"), "--json"]
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            command += [f"--{name.replace('_', '-')}", str(one)]
    return command


def start(config: FinetuneConfig, log: Path) -> subprocess.Popen[bytes]:
    """Start `isthmus finetune` in its own process group, with its own Ray."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            flags(config),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stream,
            env=os.environ | {"RAY_ADDRESS": "local"},
            start_new_session=True,
        )


def kill_driver_after(config: FinetuneConfig, step: int, log: Path) -> int:
    """Start the command; SIGKILL its process group once the checkpoint of `step` exists; return the step reached."""
    process = start(config, log)
    folder = Path(f"{config.out}.run")
    deadline = time.monotonic() + 200
    while latest_step(folder) < step and process.poll() is None:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    reached = latest_step(folder)
    # What is left of its Ray ends by itself; the next start does not wait for that.
    assert process.returncode in (0, -signal.SIGKILL), log.read_text()
    return reached


def finish(config: FinetuneConfig, log: Path) -> dict[str, Any]:
    process = start(config, log)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, log.read_text()
    return dict(json.loads(out))


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_driver_goes_on(table: str, towers: str, tmp_path: Path, workers: int) -> None:
    options = {**_FEATURES, "epochs": 400, "workers": workers}
    hit = heads_config(table, towers, tmp_path / "hit", **options)
    reached = 0
    for _ in range(2):
        now = kill_driver_after(hit, reached + random.randint(5, 200), tmp_path / "log")
        assert now > reached, "a start takes up where the former one ended"
        reached = now
    report = finish(hit, tmp_path / "log")
    assert report["resumed_at"] >= reached
    finish(heads_config(table, towers, tmp_path / "calm", **options), tmp_path / "log")
    assert_same_weights(tmp_path / "calm", tmp_path / "hit", 0.0 if workers == 1 else 1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_driver_on_pictures_goes_on(pixels: tuple[str, str], tmp_path: Path, workers: int) -> None:
    options = {**_PIXELS, "workers": workers}
    hit = heads_config(*pixels, tmp_path / "hit", **options)
    reached = kill_driver_after(hit, random.randint(2, 20), tmp_path / "log")
    report = finish(hit, tmp_path / "log")
    assert report["resumed_at"] >= reached > 0
    finish(heads_config(*pixels, tmp_path / "calm", **options), tmp_path / "log")
    assert_same_weights(tmp_path / "calm", tmp_path / "hit", 0.0 if workers == 1 else 1e-5)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.heavy
def test_a_full_disk_leaves_the_former_checkpoint(table: str, towers: str, tmp_path: Path) -> None:
    """From some step on, the training processes may write at most 4 KiB per file, as on a full disk."""
    folder, ended = tmp_path / "out.run", threading.Event()

    def fill() -> None:
        while not ended.wait(0.005):
            if latest_step(folder) >= 6:
                for process in training_workers():
                    process.rlimit(psutil.RLIMIT_FSIZE, (4096, 4096))

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        with pytest.raises(OSError, match=r"latest\.pt: cannot be written \(.*\); the previous checkpoint") as e:
            run(heads_config(table, towers, tmp_path / "out", epochs=2_000, checkpoint_every=3))
    finally:
        ended.set()
        thread.join()
    assert "\n" not in str(e.value)
    assert not list(folder.glob("*.partial*"))
    reached = latest_step(folder)
    assert reached >= 6
    state = torch.load(folder / "latest.pt", weights_only=True)
    assert state["finished"] is False
