"""A directory is written completely or not at all, whenever the write fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from encoders.saving import replacing


def put(directory: Path, text: str) -> None:
    with replacing(directory) as folder:
        (folder / "weights").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_new_one_takes_the_place_of_the_whole_former_one(tmp_path: Path) -> None:
    """A leftover file of the former model would be read together with the weights of the new one."""
    target = tmp_path / "a" / "model"
    put(target, "old")
    (target / "adapter.json").write_text("of the old one")
    put(target, "new")
    assert contents(tmp_path) == {"a/model/weights": "new"}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["model"]


def test_the_former_one_comes_back_where_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    """Between two renames there is a moment without a model; an error in it once deleted the only one."""
    target = tmp_path / "model"
    put(target, "old")

    def lose() -> None:
        with replacing(target) as folder:
            shutil.rmtree(folder)

    with pytest.raises(FileNotFoundError):
        lose()
    assert contents(tmp_path) == {"model/weights": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_interrupt_is_an_error_too(tmp_path: Path) -> None:
    def stop() -> None:
        with replacing(tmp_path / "model") as folder:
            (folder / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert list(tmp_path.iterdir()) == []


def test_killed_while_it_writes_the_former_one_stands_and_the_next_goes_through(tmp_path: Path) -> None:
    target = tmp_path / "model"
    put(target, "old")
    script = (
        "import os, sys\nfrom encoders.saving import replacing\n"
        f"with replacing({str(target)!r}) as folder:\n"
        "    (folder / 'weights').write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=root)
    assert done.returncode == -9
    assert (target / "weights").read_text() == "old"
    put(target, "new")
    assert (target / "weights").read_text() == "new"
