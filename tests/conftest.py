"""One Ray for the whole session; small corpora and tables in temporary folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two pytest processes share the cores. Threads that spin, and Ray's workers, which have low priority, would make the
# two wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")
# Graphs kept by an earlier test would hide what this test checks.
os.environ["ISTHMUS_CACHE"] = ""
# A training run of a tenth of a second should neither wait for Ray Train's two-second poll nor start its watcher for
# spot instances.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


# The same examples in every run, so that CI is repeatable; `make test-heavy` draws others each time. No deadline: a
# busy machine is no fault of the code.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("free", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray with 4 logical CPUs (with two, actors and tasks would starve each other)."""
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    yield
    ray.shutdown()


@pytest.fixture(scope="module", params=[pytest.param("ray", marks=pytest.mark.slow), "process"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the module twice: jobs with the options `on_engine()` run on Ray, then in worker processes."""
    from engines import turn_of

    if request.param == "ray":
        request.getfixturevalue("ray_session")
    with turn_of(request.param):
        yield request.param


@pytest.fixture(scope="module")
def shared_ray(ray_session: None) -> Iterator[None]:
    """Commands use the session's Ray: for modules that need not prove that a command starts its own."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", str(ray.get_runtime_context().gcs_address))
        yield
