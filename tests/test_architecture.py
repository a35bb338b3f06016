"""Imports go jobs → pipelines → encoders. In pipelines, wings rest on a ground floor and never import each other.

With an import in the other direction, the encoders would need a cluster, or a change to search would break the sink.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest
from imports import imports_of, loops, modules_of, sibling_edges

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("encoders", "pipelines", "jobs")
FORBIDDEN = {
    "encoders": {"pipelines", "jobs", "ray", "lance", "lancedb", "pyarrow"},
    "pipelines": {"jobs"},
}
GROUND_FLOOR = ("store", "rows", "cluster", "tables", "ledger", "vectors", "sources", "pages")
WINGS = ("ingest", "search", "train", "curate", "samples")


def upward(root: Path) -> list[str]:
    """Imports against jobs → pipelines → encoders, and imports of libraries that a package must not need."""
    found = imports_of(root, PACKAGES)
    return [str(one) for one in found if one.imported.split(".")[0] in FORBIDDEN.get(one.importer.split(".")[0], ())]


def between_wings(root: Path) -> list[str]:
    """Imports from one wing into another, and from the ground floor into a wing."""
    wrong = []
    for one in imports_of(root, ("pipelines",)):
        a, b = (name.split(".")[1] if name.count(".") else "" for name in (one.importer, one.imported))
        if one.imported.startswith("pipelines.") and b in WINGS and a != b and a:
            wrong.append(str(one))
    return wrong


def package_loops(root: Path) -> list[str]:
    """Imports that close a loop between sibling packages, at any depth."""
    imports = imports_of(root, PACKAGES)
    modules = modules_of(root, PACKAGES)
    packages = {name for name, path in modules.items() if path.name == "__init__.py"}
    edges = {parent: sibling_edges(imports, parent) for parent in sorted(packages)}
    return [
        str(one)
        for parent, found in edges.items()
        for one in loops({(a, b): why for (a, b), why in found.items() if {a, b} & packages})
    ]


def openings(root: Path) -> list[str]:
    """Calls of `lance.dataset`, `lance.LanceDataset` and `lancedb.connect` outside `pipelines/tables`."""
    wrong = []
    for name, path in modules_of(root, ("pipelines", "jobs")).items():
        for node in ast.walk(ast.parse(path.read_text())):
            opens = isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "lance.dataset",
                "lance.LanceDataset",
                "lancedb.connect",
            )
            if opens and not name.startswith("pipelines.tables."):
                wrong.append(f"{name}:{node.lineno} opens a dataset")
    return wrong


CHECKS = {check.__name__: check for check in (upward, between_wings, package_loops, openings)}


@pytest.mark.parametrize("check", CHECKS)
def test_the_house_keeps_to_its_plan(check: str) -> None:
    assert not CHECKS[check](ROOT)


@pytest.mark.parametrize(
    ("check", "module", "line"),
    [
        ("upward", "encoders/digest.py", "import pipelines.store.storage"),
        ("upward", "encoders/digest.py", "import ray"),
        ("upward", "pipelines/rows/pace.py", "from jobs.config import JobConfig"),
        ("between_wings", "pipelines/search/retrieval/fusing.py", "from pipelines.ingest import embed"),
        ("between_wings", "pipelines/train/mining/margins.py", "import pipelines.curate.exploration.explore"),
        ("between_wings", "pipelines/store/faults.py", "from pipelines.samples.names import Corpus"),
        ("package_loops", "pipelines/store/faults.py", "from pipelines.tables.opening import open_dataset"),
        ("package_loops", "pipelines/search/indexing/parameters.py", "import pipelines.search.retrieval.search"),
        ("package_loops", "encoders/families/pooling.py", "from encoders.registry import load"),
        ("openings", "pipelines/train/mining/margins.py", "import lance\nlance.dataset('x')"),
        ("openings", "jobs/info.py", "import lancedb\nlancedb.connect('x')"),
    ],
)
def test_each_check_fails_on_a_planted_violation(check: str, module: str, line: str, tmp_path: Path) -> None:
    """A check that finds nothing would let the architecture decay silently."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = CHECKS[check](tmp_path)
    target = tmp_path / module
    target.write_text(target.read_text() + "\n\ndef planted():\n" + "".join(f"    {x}\n" for x in line.split("\n")))
    assert len(CHECKS[check](tmp_path)) > len(before)


def test_the_ground_floor_and_the_wings_are_all_there_is() -> None:
    rooms = {path.name for path in (ROOT / "pipelines").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == {*GROUND_FLOOR, *WINGS}


def test_no_file_grows_beyond_what_a_reader_takes_in() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules_of(ROOT, PACKAGES).items()}
    assert not {name: n for name, n in lengths.items() if n > 400}


def test_nothing_trusts_remote_code() -> None:
    for path in (ROOT / "encoders").rglob("*.py"):
        assert "trust_remote_code=True" not in path.read_text(), path
