"""The wheel holds all that a user needs, pages included: a checkout hides what is missing from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from corpora import pairs, write_parquet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that holds the wheel, and sees the dependencies but not this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("isthmus-*.whl")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    commands = folder / "venv" / "bin"
    run(commands / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=folder)
    # Paths that a .pth file names are searched, but their own .pth files, which lead to this checkout, are not read.
    site = Path(run(commands / "python", "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return commands


def test_the_wheel_is_what_runs(bin_folder: Path, tmp_path: Path) -> None:
    where = run(bin_folder / "python", "-c", "import pipelines; print(pipelines.__file__)", cwd=tmp_path)
    assert str(bin_folder.parent) in where


def test_a_corpus_is_embedded_and_found_and_its_pages_are_written(bin_folder: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "c.parquet", pairs(12))
    isthmus = bin_folder / "isthmus"
    options = ("--table", "db/t", "--encoder", "fake", "--columns.key", "id", "--json")
    report = json.loads(run(isthmus, "embed", "c.parquet", *options, cwd=tmp_path))
    assert (report["rows_in"], report["written"]) == (12, 12)
    run(isthmus, "search", "db/t", "red", "--html", "page.html", cwd=tmp_path)
    run(isthmus, "evaluate", "db/t", "--html", "evaluation.html", cwd=tmp_path)
    for page in ("page.html", "evaluation.html"):
        assert "<html" in (tmp_path / page).read_text()


def test_the_web_page_comes_with_it(bin_folder: Path, tmp_path: Path) -> None:
    program = (
        "from importlib.resources import files\n"
        "static = files('pipelines.search.serving') / 'static'\n"
        "print(sorted(file.name for file in static.iterdir()))"
    )
    assert run(bin_folder / "python", "-c", program, cwd=tmp_path).strip() == "['app.js', 'index.html', 'style.css']"
