"""The imports of a source tree, read from its syntax: edges between modules, for tests of the architecture."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """`importer` (a dotted module) imports `imported` (a dotted module, as far as the tree holds it) in `line`."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules_of(root: Path, packages: tuple[str, ...]) -> dict[str, Path]:
    """Dotted name → file, for every module of the packages."""
    found = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            found[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imports_of(root: Path, packages: tuple[str, ...]) -> list[Import]:
    """Every import in the packages, lazy ones included, of modules in the tree and of others."""
    modules = modules_of(root, packages)
    return [
        Import(module, name, line)
        for module, path in modules.items()
        for name, line in _names(path, modules)
        if name != module
    ]


def _names(path: Path, modules: dict[str, Path]) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in modules else node.module or ""), node.lineno


def sibling_edges(imports: list[Import], parent: str) -> dict[tuple[str, str], Import]:
    """Imports between direct children of a package: (child, child) → one import that makes the edge."""
    depth = len(parent.split(".")) + 1
    edges: dict[tuple[str, str], Import] = {}
    for found in imports:
        if found.importer.startswith(f"{parent}.") and found.imported.startswith(f"{parent}."):
            a, b = (".".join(name.split(".")[:depth]) for name in (found.importer, found.imported))
            if a != b:
                edges.setdefault((a, b), found)
    return edges


def loops(edges: dict[tuple[str, str], Import]) -> list[Import]:
    """The imports on a loop: those whose target leads back to their source."""
    targets: dict[str, set[str]] = {}
    for a, b in edges:
        targets.setdefault(a, set()).add(b)

    def reaches(start: str, wanted: str) -> bool:
        seen, open_ = set(), [start]
        while open_:
            at = open_.pop()
            if at == wanted:
                return True
            if at not in seen:
                seen.add(at)
                open_ += targets.get(at, ())
        return False

    return [found for (a, b), found in edges.items() if reaches(b, a)]
