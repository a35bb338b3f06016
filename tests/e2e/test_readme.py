"""Every command and every snippet of the README does what it says, in a folder such as its reader has."""

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

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def assert_serves(command: str, folder: Path, environment: dict[str, str]) -> None:
    """The command says where it serves, and ends when it is interrupted."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "serving" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) in (0, 130)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("shared_ray")
def test_the_readmes_commands_and_snippets_run(tmp_path: Path) -> None:
    items = pairs(130)
    table = pa.table(
        {
            "sku": [f"SKU-{i}" for i in range(130)],
            "image": [pair.image for pair in items],
            "caption": [pair.caption for pair in items],
            "price": [float(i) for i in range(130)],
        }
    )
    (tmp_path / "corpus").mkdir()
    pq.write_table(table, tmp_path / "corpus" / "a.parquet")
    (tmp_path / "photo.jpg").write_bytes(picture(3))
    (tmp_path / "queries.csv").write_text("caption\nred shoes\n红色 跑鞋\n")
    tiny_blip(tmp_path / "models" / "blip-itm")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    commands = [line for kind, text in BLOCKS if not kind for line in text.splitlines() if line.startswith("isthmus ")]
    assert len(commands) >= 7
    for command in commands:
        if command.startswith("isthmus serve"):
            assert_serves(command, tmp_path, environment)
            continue
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout.strip(), command
    assert (tmp_path / "shoes.html").read_text().count("data:image/jpeg") == 20

    snippets = [text for kind, text in BLOCKS if kind == "python"]
    assert len(snippets) == 2
    for snippet in snippets:
        done = subprocess.run(
            [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{snippet}: {done.stderr}"
