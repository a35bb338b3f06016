"""A Python environment that can import only some packages and their requirements, as on a bare machine."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_SITE = '''
import sys
from importlib.machinery import PathFinder

ALLOWED = {allowed!r} | set(sys.stdlib_module_names)


class Bare(PathFinder):
    """Finds what is allowed; to all who ask for something else it is not there."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] not in ALLOWED:
            return None
        return super().find_spec(fullname, path, target)


# Finders of editable installations go too.
sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path if isinstance(finder, type)]
'''


def bare_environment(folder: Path, root: Path, packages: tuple[str, ...], own: tuple[str, ...]) -> dict[str, str]:
    """Environment variables under which Python, started in `root`, can import nothing else.

    Args:
        folder: gets a `sitecustomize.py`, which every new process loads.
        root: root of the checkout.
        packages: distributions that are available, with all of their requirements.
        own: packages of the checkout.
    """
    closure = _with_requirements(packages)
    found = metadata.packages_distributions()
    allowed = {name for name, owners in found.items() if closure & {canonicalize_name(owner) for owner in owners}}
    # Modules that are not a top-level package in any distribution's record.
    allowed |= {"sitecustomize", *own} - {"", "tests"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE.format(allowed=allowed))
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(root))), "PYTHONDONTWRITEBYTECODE": "1"}


def _with_requirements(packages: tuple[str, ...]) -> set[str]:
    closure: set[str] = set()
    waiting = [canonicalize_name(name) for name in packages]
    while waiting:
        name = waiting.pop()
        if name in closure:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # Needed only on another platform or Python version.
            continue
        closure.add(name)
        for requirement in map(Requirement, required):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    return closure
