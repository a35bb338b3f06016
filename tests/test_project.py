"""The project's own claims must hold: its cluster, its pins, its commands."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from pipelines.cluster.session import IDLE_MS, IDLE_VARIABLE

ROOT = Path(__file__).resolve().parent.parent


def test_ray_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    types = config["available_node_types"]
    # Mistakes that Ray's own validator lets pass.
    assert config["provider"]["region"]
    assert config["head_node_type"] in types
    assert types[config["head_node_type"]]["max_workers"] == 0
    for name, node in types.items():
        assert node["min_workers"] <= node["max_workers"] <= config["max_workers"], name
        assert re.fullmatch(r"[a-z]+\d[a-z]*\.\d*x?large", node["node_config"]["InstanceType"]), name
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert f"{IDLE_VARIABLE}={IDLE_MS} ~/venv/bin/ray start" in commands[-1]
    gpu, cpu = types["gpu_worker"], types["cpu_worker"]
    assert gpu["node_config"]["InstanceType"].startswith("g")
    assert not cpu["node_config"]["InstanceType"].startswith(("g", "p"))


@pytest.mark.parametrize("name", ["ray", "lancedb", "pylance", "pyarrow", "torch", "transformers"])
def test_the_installed_versions_are_the_ones_that_were_tried_together(name: str) -> None:
    """ray, lancedb and pylance change fast and break one another: an upgrade is a decision, not an accident."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert metadata.version(name).split("+")[0] == pins[name]


def test_what_the_sink_leans_on_is_there() -> None:
    import inspect

    import lance
    from lance.fragment import write_fragments

    assert "transaction_properties" in inspect.signature(lance.Transaction).parameters
    assert "max_retries" in inspect.signature(lance.LanceDataset.commit).parameters
    assert hasattr(lance.LanceOperation, "Merge")
    assert "storage_options" in inspect.signature(write_fragments).parameters
    from ray.data import Dataset

    assert hasattr(Dataset, "iter_internal_ref_bundles")


def test_every_pin_satisfies_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    wanted = [*project["dependencies"], *(r for rs in project["optional-dependencies"].values() for r in rs)]
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name != "isthmus":
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin is not None, f"{requirement.name} is not in constraints.txt"
            assert requirement.specifier.contains(pin), f"{requirement} against {pin}"


def test_the_readme_and_the_how_to_pages_name_only_commands_and_targets_that_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]
    readme = "\n".join(page.read_text() for page in pages)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    from jobs.cli import app

    for command in re.findall(r"isthmus ([a-z]+)\b", "\n".join(re.findall(r"```\n(.*?)```", readme, re.DOTALL))):
        assert command in app, command


def test_ci_runs_the_readmes_test_command() -> None:
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
