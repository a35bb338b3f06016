"""This machine, and whether a run on it needs Ray. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_CLUSTER = "/tmp/ray/ray_current_cluster"


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def needs_no_ray(engine: str, device: str, *, asks: bool) -> bool:
    """Whether a run uses worker processes: without a cluster, and without GPUs to share out.

    Args:
        engine: `auto`, `ray` or `process`; `auto` decides by the rest.
        device: `auto`, `cpu` or `cuda`.
        asks: whether the run asks for actors, GPUs or their memory, which only Ray provides.
    """
    if engine != "auto":
        return engine == "process"
    return not asks and not _has_ray() and (device == "cpu" or not _has_gpu())


def _has_ray() -> bool:
    """Whether Ray is running or a cluster is configured; found without importing Ray, which takes a second."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return True
    return os.environ.get("RAY_ADDRESS", "local") != "local" or Path(_CLUSTER).exists()


def _has_gpu() -> bool:
    return any(Path(device).exists() for device in _GPUS)
