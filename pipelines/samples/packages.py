"""Packages of npm and Debian, fetched once by the system's own client and read without unpacking them to disk."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_TIMEOUT_S = 1_800
_REMEDY = {
    "npm": "install Node.js with npm (on Debian: apt-get install npm)",
    "apt-get": "it is part of Debian and its kin; elsewhere copy the packages from such a machine",
    "dpkg-deb": "install dpkg (on Fedora: dnf install dpkg; with Homebrew: brew install dpkg)",
}


class FetchError(RuntimeError):
    """A package could not be fetched; the message names the client, the package and the remedy."""


def npm_package(name: str, version: str, cache: Path) -> Path:
    """The tarball of an npm package, from the cache or by `npm pack`.

    Raises:
        FetchError: npm is missing, or could not fetch the package.
    """
    file = f"{name}-{version}.tgz"
    command = ["npm", "pack", "--loglevel", "error", f"{name}@{version}"]
    return _cached(cache, file, command, remedy="is the registry reachable? try: npm view " + name)


def debian_package(name: str, cache: Path) -> Path:
    """The .deb of a Debian package, from the cache or by `apt-get download`, in the version that the system offers.

    Raises:
        FetchError: apt-get or dpkg-deb is missing, or apt-get could not fetch the package.
    """
    require("dpkg-deb", f"to read the package {name}")
    return _cached(cache, f"{name}_*.deb", ["apt-get", "download", name], remedy="try: apt-get update")


def require(client: str, purpose: str) -> None:
    """Fail if a client is not on the path.

    Args:
        client: the program, a key of `_REMEDY`.
        purpose: what it is needed for, for the message.

    Raises:
        FetchError: names the client and how to install it.
    """
    if shutil.which(client) is None:
        raise FetchError(f"{client} is not installed; it is needed {purpose}: {_REMEDY[client]}")


def read_package(package: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """{name: content} of the wanted regular files of a tarball, read in one pass.

    Raises:
        FetchError: the file is cut short, or is not a tarball.
    """
    found = {}
    try:
        with tarfile.open(package, mode="r|*") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() and wanted(member.name) else None
                if content is not None:
                    found[member.name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FetchError(f"{package}: not a complete package ({error}); delete it to fetch it again") from error
    return found


@contextmanager
def open_debian(package: Path) -> Iterator[tarfile.TarFile]:
    """The files of a .deb as a tar that may be read in any order. Its uncompressed copy is deleted afterwards.

    Raises:
        FetchError: dpkg-deb is missing, or the file is not a Debian package.
    """
    require("dpkg-deb", f"to read {package.name}")
    with tempfile.TemporaryFile(dir=package.parent) as copy:
        command = ["dpkg-deb", "--fsys-tarfile", str(package)]
        done = subprocess.run(command, stdout=copy, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise FetchError(f"{package}: {_last_line(done.stderr)}; delete it to fetch it again")
        copy.seek(0)
        with tarfile.open(fileobj=copy, mode="r:") as tar:
            yield tar


def _cached(cache: Path, pattern: str, command: list[str], remedy: str) -> Path:
    """The newest file in the cache that matches the pattern; if there is none, the file that the command makes."""
    if found := sorted(cache.glob(pattern)):
        return found[-1]
    package = command[-1]
    require(command[0], f"to fetch the package {package} (or put its file, {pattern}, into {cache})")
    cache.mkdir(parents=True, exist_ok=True)
    # Outside the cache until it is whole: an interrupted download must not count as a package.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        _run(command, Path(scratch), remedy)
        made = sorted(Path(scratch).glob(pattern))
        if not made:
            raise FetchError(f"{' '.join(command)} made no file {pattern}; {remedy}")
        return made[-1].replace(cache / made[-1].name)


def _run(command: list[str], folder: Path, remedy: str) -> None:
    said = f"{command[0]} could not fetch the package {command[-1]}"
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, timeout=_TIMEOUT_S, check=False, env=os.environ | {"LC_ALL": "C"}
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{said} in {_TIMEOUT_S} s; {remedy}") from error
    if done.returncode:
        raise FetchError(f"{said}: {_last_line(done.stderr)}; {remedy}")


def _last_line(output: bytes) -> str:
    """The most informative line: the last one that names an error, else the last one."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "npm error", "npm ERR!", "dpkg-deb: error"))]
    told = [line for line in errors if "complete log" not in line]
    return (told or lines or ["it said nothing"])[-1]
