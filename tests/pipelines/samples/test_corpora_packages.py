"""Packages are fetched once, and a missing one is reported in one line."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from pipelines.samples.catalog import NAMES, build
from pipelines.samples.packages import FetchError, debian_package, npm_package, open_debian, read_package

ROOT = Path(__file__).resolve().parents[3]


def client(folder: Path, name: str, script: str) -> None:
    """A program of that name, as the only one on the path."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("corpus", "client_name", "remedy"),
    [
        ("emoji-google", "npm", "install Node.js with npm"),
        ("emoji-twitter", "npm", "install Node.js with npm"),
        ("openclipart", "dpkg-deb", "install dpkg"),
    ],
)
def test_a_missing_client_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str, client_name: str, remedy: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(FetchError, match=f"^{client_name} is not installed") as raised:
        build(corpus, tmp_path / "out")
    assert remedy in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("*.parquet"))


def test_apt_get_missing_beside_dpkg_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(tmp_path / "bin", "dpkg-deb", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(FetchError, match=r"^apt-get is not installed"):
        debian_package("openclipart-png", tmp_path / "cache")


def test_what_a_client_says_of_its_failure_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "echo 'npm error code E404' >&2; echo 'npm error 404 Not Found' >&2\n"
    script += "echo 'npm error A complete log of this run is in x' >&2; exit 1"
    client(tmp_path / "bin", "npm", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    with pytest.raises(FetchError, match="could not fetch the package emojibase-data@1: npm error 404 Not Found"):
        npm_package("emojibase-data", "1", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir()), "a failed fetch leaves nothing that counts as a package"


def test_a_client_that_makes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(tmp_path / "bin", "npm", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    with pytest.raises(FetchError, match=r"made no file p-1\.tgz"):
        npm_package("p", "1", tmp_path / "cache")


def test_a_package_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(tmp_path / "bin", "npm", f"echo run >> {tmp_path}/runs; echo content > p-1.tgz")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    first, second = (npm_package("p", "1", tmp_path / "cache") for _ in range(2))
    assert first == second == tmp_path / "cache" / "p-1.tgz"
    assert (tmp_path / "runs").read_text() == "run\n"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["p-1.tgz"]


def test_a_tarball_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 400)
    whole = tmp_path / "p.tgz"
    with tarfile.open(whole, "w:gz") as tar:
        tar.add(tmp_path / "file", "package/file")
        tar.add(tmp_path / "file", "package/other")
    assert read_package(whole, "package/file".__eq__) == {"package/file": (tmp_path / "file").read_bytes()}
    whole.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(FetchError, match=r"p\.tgz: not a complete package .*delete it"):
        read_package(whole, lambda name: True)


def test_a_file_that_is_no_debian_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(tmp_path / "bin", "dpkg-deb", "echo 'dpkg-deb: error: not a Debian format archive' >&2; exit 2")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    (tmp_path / "x_1.deb").write_bytes(b"no package")
    with (
        pytest.raises(FetchError, match=r"x_1\.deb: dpkg-deb: error: not a Debian format archive; delete it"),
        open_debian(tmp_path / "x_1.deb"),
    ):
        pass


def test_the_command_says_what_is_missing_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.cli", "corpus", "emoji-google", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert done.stderr.startswith("isthmus: npm is not installed; it is needed to fetch the package emojibase-data")


def test_the_recipes_name_only_options_that_exist(tmp_path: Path) -> None:
    """A recipe takes too long for a test, but a renamed flag shows at once."""
    from jobs.cli import app

    commands = [
        line.replace("$columns", "--columns.key key --columns.item item")
        for recipe in sorted((ROOT / "examples").glob("*.sh"))
        for line in recipe.read_text().splitlines()
        if line.startswith("isthmus ")
    ]
    assert len(commands) >= 12
    known = [shlex.split(command)[1:] for command in commands if shlex.split(command)[1] in app]
    assert {"corpus", "embed", "finetune", "index", "search"} <= {tokens[0] for tokens in known}
    for tokens in known:
        # The YAML of a recipe holds what its command line leaves out.
        given = [token for token in tokens if token != "--config" and not token.endswith(".yaml")]
        extra = ["--encoder", "x"] if given != tokens else []
        app.parse_args([*given, *extra], exit_on_error=False, print_error=False)
    from jobs.embed import EmbedConfig

    options = yaml.safe_load((ROOT / "examples" / "embed_clipart.yaml").read_text())
    EmbedConfig(corpus="c", table="t/t", **options)


def test_the_recipes_list_every_corpus() -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    assert all(f"`{name}`" in text for name in NAMES)
    for recipe in (ROOT / "examples").glob("*.sh"):
        assert f"({recipe.name})" in text
        assert subprocess.run(["sh", "-n", str(recipe)], check=False).returncode == 0
