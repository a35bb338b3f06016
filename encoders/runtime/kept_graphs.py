"""Graphs of OpenVINO that were found as exact as torch, kept on this disk: the next run starts without torch's model.

Importing a family's modules of transformers, loading its weights and tracing them takes longer than all the rest of a
small job. A graph is kept by its tower's fingerprint, its precision, the processor and the versions of all that made
it; ISTHMUS_CACHE names another folder, and none if it is empty.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import uuid
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from encoders.digest import digest_files, digest_json
from encoders.protocol import TowerCard

log = logging.getLogger(__name__)
VARIABLE = "ISTHMUS_CACHE"
# Raise it when a graph of the same tower is made in another way.
_FORMAT = 1
_MAKERS = ("isthmus", "torch", "transformers", "openvino")
_GRAPH, _ABOUT = "graph.xml", "about.json"
_MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class KeptGraph:
    """The place of a tower's graph, whether one is there or not."""

    folder: Path

    def is_there(self, *, faster: bool) -> bool:
        """Whether a graph is there, by its files' sizes.

        Args:
            faster: whether it must have been faster than torch.
        """
        try:
            about = json.loads((self.folder / _ABOUT).read_text())
            whole = all((self.folder / name).stat().st_size == size for name, size in about["bytes"].items())
        except (OSError, ValueError, KeyError, AttributeError):
            return False
        return whole and (bool(about["faster"]) or not faster)

    def open(self, *, faster: bool) -> Any | None:
        """OpenVINO's model; None where there is none that will do, or not as it was saved: other weights would give
        other vectors, without a word.

        Args:
            faster: whether it must have been faster than torch.
        """
        if not self.is_there(faster=faster):
            return None
        import openvino

        try:
            os.utime(self.folder)  # what was used last is dropped last
            about = json.loads((self.folder / _ABOUT).read_text())
            if about["digest"] != digest_files(self.folder / name for name in about["bytes"]):
                raise ValueError("its files are not those that were saved")
            return openvino.Core().read_model(self.folder / _GRAPH)
        except Exception as error:
            # The reader raises whatever its C++ side does; torch stands by in any case.
            log.info("%s cannot be read and is made anew: %s", self.folder, error)
            self.drop()
            return None

    def save(self, model: Any, *, faster: bool) -> None:
        """Keep a model; a disk that is full, or that nobody may write to, costs the next run time and nothing else.

        Args:
            model: of OpenVINO, not compiled.
            faster: whether it is faster than torch here.
        """
        import openvino

        root = self.folder.parent
        making = root / f".{uuid.uuid4().hex}"
        try:
            making.mkdir(parents=True)
            openvino.serialize(model, making / _GRAPH, making / "graph.bin")
            sizes = {path.name: path.stat().st_size for path in making.iterdir()}
            about = {"faster": faster, "bytes": sizes, "digest": digest_files(making / name for name in sizes)}
            (making / _ABOUT).write_text(json.dumps(about))
            self.drop()
            making.replace(self.folder)
        except Exception as error:
            log.info("%s is not kept: %s", self.folder, error)
            shutil.rmtree(making, ignore_errors=True)
            return
        _make_room(root, self.folder)

    def drop(self) -> None:
        """Remove it, if it is there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def place_of(tower: TowerCard, precision: str) -> KeptGraph | None:
    """Where the graph of a tower belongs; None where none are kept."""
    root = _root()
    if root is None:
        return None
    made_by = digest_json([_FORMAT, precision, _processor(), {name: _version(name) for name in _MAKERS}])
    return KeptGraph(root / f"{tower.fingerprint}-{made_by}")


def any_of(tower: TowerCard) -> bool:
    """Whether a graph of the tower is there, in whatever precision and by whichever versions."""
    root = _root()
    return root is not None and any(root.glob(f"{tower.fingerprint}-*"))


def _root() -> Path | None:
    named = os.environ.get(VARIABLE)
    if named == "":
        return None
    return (Path(named).expanduser() if named else _user_cache()) / "graphs"


def _user_cache() -> Path:
    import platformdirs  # A machine without OpenVINO keeps no graphs, and need not have it.

    return platformdirs.user_cache_path("isthmus")


def _make_room(root: Path, newest: Path) -> None:
    """Drop those that were not used for the longest time, while all together are too large."""
    try:
        sizes = {path: sum(f.stat().st_size for f in path.iterdir()) for path in root.iterdir() if path != newest}
        left = sum(sizes.values()) - _MOST_BYTES
        for path in sorted(sizes, key=lambda path: path.stat().st_mtime):
            if left <= 0:
                return
            shutil.rmtree(path, ignore_errors=True)
            left -= sizes[path]
    except OSError:  # Another process makes room too.
        return


@cache
def _processor() -> str:
    """What this machine computes with: a home may be shared by several."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return digest_json(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
