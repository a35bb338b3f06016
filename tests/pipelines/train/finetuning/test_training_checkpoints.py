"""Checkpoints survive full disks and kills; a folder holds one run."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import stores
import torch

from pipelines.store.storage import Storage
from pipelines.train.finetuning.checkpoints import RunFolder, claim_run

ROOT = str(Path(__file__).resolve().parents[4])
SCRIPT = """
import resource, signal, sys, torch
from pipelines.store.storage import Storage
from pipelines.train.finetuning.checkpoints import RunFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN if sys.argv[2] == "full" else signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
RunFolder(uri=sys.argv[1], storage=Storage()).save("latest.pt", {"big": torch.zeros(100_000)})
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[Storage]:
    with stores.moto() as endpoint:
        yield Storage.from_options(stores.options(endpoint))


def folder_of(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> RunFolder:
    if kind == "disk":
        return RunFolder(uri=str(tmp_path / "run"), storage=Storage())
    return RunFolder(uri=f"s3://{stores.BUCKET}/{tmp_path.name}/run", storage=request.getfixturevalue("s3"))


@pytest.mark.parametrize("how", ["full", "killed"])
def test_a_write_that_breaks_off_leaves_the_former_checkpoint(how: str, tmp_path: Path) -> None:
    """Hours of work depend on one file. The kernel's file size limit stands in for a full disk and for a kill."""
    folder = RunFolder(uri=str(tmp_path / "run"), storage=Storage())
    folder.save("latest.pt", {"step": 1})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder.uri, how], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if how == "full":
        assert f"{folder.uri}/latest.pt: cannot be written (File too large)" in done.stderr
        assert "the previous checkpoint is still valid" in done.stderr
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["latest.pt"]
    else:
        assert done.returncode < 0, "it was to die in the middle"
        (partial,) = (tmp_path / "run").glob("latest.pt.*.partial")
        assert partial.stat().st_size == 4096
    assert folder.load("latest.pt") == {"step": 1}
    folder.save("latest.pt", {"step": 2})
    assert folder.load("latest.pt") == {"step": 2}
    folder.tidy()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["latest.pt"]


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_all_that_a_run_needs_comes_back(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = folder_of(kind, tmp_path, request)
    assert folder.load("latest.pt") is None
    assert folder.read("run.json") is None
    layer = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    state = {
        "model": layer.state_dict(),
        "optimiser": optimiser.state_dict(),
        "best": -math.inf,
        "table_versions": {"samples": 3},
        "history": '["\u7ea2"]',
        "finished": False,
    }
    folder.save("latest.pt", state)
    found = folder.load("latest.pt")
    assert found is not None
    torch.testing.assert_close(found["model"], dict(state["model"]))  # type: ignore[call-overload]
    again = torch.optim.AdamW(layer.parameters())
    again.load_state_dict(found["optimiser"])
    assert again.state_dict()["state"][0]["step"] == 1
    assert {n: found[n] for n in ("best", "table_versions", "history", "finished")} == {
        n: state[n] for n in ("best", "table_versions", "history", "finished")
    }
    folder.save("latest.pt", {"step": 2})
    assert folder.load("latest.pt") == {"step": 2}


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_a_run_is_taken_up_only_by_its_own_config(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Weights of two recipes in one checkpoint are the result of neither."""
    folder = folder_of(kind, tmp_path, request)
    config = {"train": {"rate": 1.0, "seed": 0, "losses": [{"name": "infonce"}]}, "samples": "t", "teacher": None}
    assert not claim_run(folder, config)
    assert not claim_run(folder, config), "begun, but without a checkpoint: from the start"
    folder.save("latest.pt", {"step": 1})
    assert claim_run(folder, {**config, "train": dict(reversed(config["train"].items()))})  # type: ignore[attr-defined]
    other = {**config, "train": {**config["train"], "rate": 2.0, "new": True}, "teacher": "big"}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="started with another config") as caught:
        claim_run(folder, other)
    said = str(caught.value)
    for part in ("train.rate: was 1.0, now 2.0", "train.new: was None, now True", "teacher: was None, now 'big'"):
        assert part in said
    for same in ("seed", "samples", "losses"):
        assert same not in said, f"{same} is as it was"
    assert "--out" in said
    assert claim_run(folder, config)


def test_a_model_that_was_pickled_by_somebody_is_not_run(tmp_path: Path) -> None:
    """A checkpoint is data from a disk that others may write to."""
    folder = RunFolder(uri=str(tmp_path / "run"), storage=Storage())
    folder.save("latest.pt", {"path": Path("x")})
    with pytest.raises(Exception, match="weights_only"):
        folder.load("latest.pt")
