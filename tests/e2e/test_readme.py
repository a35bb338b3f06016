"""Every command and every snippet of the how-to pages does what it says, in a folder such as their reader has."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import pairs, picture
from tiny_models import tiny_blip

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
# The order of a reader: what a page's commands make, those of a later page use.
PAGES = tuple(f"docs/howto/{name}.md" for name in ("embedding", "training", "search", "operations"))


def blocks_of(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language, text."""
    return re.findall(r"```(\w*)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands_of(page: str) -> list[str]:
    """The commands of a page, in order."""
    lines = [line for kind, text in blocks_of(page) if not kind for line in text.splitlines()]
    return [line for line in lines if line.startswith("isthmus ")]


def as_words(command: str) -> str:
    """A command without the spaces that only line it up."""
    return " ".join(command.split())


def assert_serves(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Check that the command prints its address, and ends when it is interrupted."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "serving" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) in (0, 130)


COMMANDS = [command for page in PAGES for command in commands_of(page)]
SNIPPETS = [text for page in PAGES for kind, text in blocks_of(page) if kind == "python"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's files before the first command. The commands run in this folder one after the other, unchanged."""
    folder = tmp_path_factory.mktemp("reader")
    items = pairs(130)
    table = pa.table(
        {
            "sku": [f"SKU-{i}" for i in range(130)],
            "image": [pair.image for pair in items],
            "caption": [pair.caption for pair in items],
            "price": [float(i) for i in range(130)],
        }
    )
    (folder / "corpus").mkdir()
    pq.write_table(table, folder / "corpus" / "a.parquet")
    (folder / "photo.jpg").write_bytes(picture(3))
    (folder / "queries.csv").write_text("caption\nred shoes\n红色 跑鞋\n")
    tiny_blip(folder / "models" / "blip-itm")
    return folder


def test_the_pages_have_their_commands_and_snippets() -> None:
    assert len(COMMANDS) >= 33
    assert sum("--html shoes.html" in command for command in COMMANDS) == 1
    assert len(SNIPPETS) == 2


def test_the_readme_repeats_commands_of_the_pages() -> None:
    """A command that only the README holds would be run by nobody."""
    repeated = commands_of("README.md")
    assert repeated
    assert {as_words(command) for command in repeated} <= {as_words(command) for command in COMMANDS}


def test_no_page_is_left_out() -> None:
    assert {f"docs/howto/{path.name}" for path in (ROOT / "docs" / "howto").glob("*.md")} == set(PAGES)


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("command", COMMANDS, ids=[f"{i} {c.split()[1]}" for i, c in enumerate(COMMANDS)])
def test_a_command_does_what_it_says(folder: Path, command: str) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if command.startswith("isthmus serve"):
        assert_serves(command, folder, environment)
        return
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if "--html shoes.html" in command:
        assert (folder / "shoes.html").read_text().count("data:image/jpeg") == 20


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["encoders", "search"])
def test_a_snippet_runs(folder: Path, snippet: str) -> None:
    done = subprocess.run([sys.executable, "-c", snippet], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
