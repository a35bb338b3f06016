"""Imports go jobs → pipelines → encoders. An arrow the other way, and the encoders need a cluster to be used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "encoders": {"pipelines", "jobs", "ray", "lance", "lancedb", "pyarrow"},
    "pipelines": {"jobs"},
    "jobs": set(),
}


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield node.lineno, node.module or ""


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} holds no modules: the test would pass for the wrong reason"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imports_of(path)
        if name.split(".")[0] in FORBIDDEN[package]
    ]
    assert not wrong


def test_no_file_grows_beyond_what_a_reader_takes_in() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for package in FORBIDDEN
        for path in (ROOT / package).rglob("*.py")
    }
    assert not {name: n for name, n in lengths.items() if n > 400}


def test_nothing_trusts_remote_code() -> None:
    for path in (ROOT / "encoders").rglob("*.py"):
        assert "trust_remote_code=True" not in path.read_text(), path
