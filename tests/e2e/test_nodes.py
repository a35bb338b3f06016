"""A job on a cluster of several nodes: nodes and drivers die; the table equals that of an undisturbed run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from killing import ROWS, assert_same, kill, settled, start, write_corpus
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "c.parquet")


@pytest.fixture(scope="module")
def calm(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calm")
    process = start(corpus, folder / "db" / "t", folder / "log")
    process.communicate(timeout=300)
    assert process.returncode == 0, (folder / "log").read_text()
    return folder / "db" / "t"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and two nodes, each with its own raylet and object store."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=2)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def wait_for_rows(table: Path, rows: int) -> None:
    deadline = time.monotonic() + 120
    while settled(table) < rows:
        assert time.monotonic() < deadline, f"{settled(table)} rows after two minutes"
        time.sleep(0.05)


def test_nodes_that_die_in_mid_job_cost_no_row(corpus: Path, calm: Path, cluster: Cluster, tmp_path: Path) -> None:
    table, log = tmp_path / "db" / "t", tmp_path / "log"
    process = start(corpus, table, log, cluster.address)
    for rows, node in zip((100, 600), list(cluster.worker_nodes), strict=True):
        wait_for_rows(table, rows)
        assert process.poll() is None, "the job ended before the node could die"
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=2)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, log.read_text()
    assert json.loads(out)["rows_in"] == ROWS
    assert_same(table, calm)


def test_a_driver_of_a_cluster_that_dies_is_taken_over_from(
    corpus: Path, calm: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """The dead driver's actors run on other nodes, and may still be staging when the next driver starts."""
    table, log = tmp_path / "db" / "t", tmp_path / "log"
    for rows in (100, 600):
        process = start(corpus, table, log, cluster.address)
        wait_for_rows(table, rows)
        assert process.poll() is None, "the job ended before its driver could die"
        kill(process)
    process = start(corpus, table, log, cluster.address)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, log.read_text()
    report = json.loads(out)
    assert report["skipped"] >= 600
    assert report["skipped"] + report["rows_in"] == ROWS
    assert_same(table, calm)


def test_gpus_of_several_nodes_get_an_actor_each(corpus: Path, calm: Path, tmp_path: Path) -> None:
    """Ray assigns GPUs by count. So a test without a device can check that none idles and that decoding needs none."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, num_gpus=1)
        cluster.wait_for_nodes()
        table, log = tmp_path / "db" / "t", tmp_path / "log"
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        process = start(corpus, table, log, cluster.address)
        free = []
        while process.poll() is None:
            free.append(ray.available_resources().get("GPU", 0.0))
            time.sleep(0.1)
        out, _ = process.communicate(timeout=300)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert process.returncode == 0, log.read_text()
    assert json.loads(out)["actors"] == 2
    assert min(free) == 0.0, "a GPU was free all the time"
    assert_same(table, calm)
