"""This machine, and whether a run needs no Ray on it. Nothing heavy is imported here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_CLUSTER = "/tmp/ray/ray_current_cluster"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def needs_no_ray(engine: str, device: str, *, asks: bool) -> bool:
    """Whether a run goes in processes: there is no cluster, and no GPU to share out.

    Args:
        engine: `auto`, `ray` or `process`.
        device: `auto`, `cpu` or `cuda`.
        asks: whether actors, GPUs or their memory were asked for: they are Ray's.
    """
    if engine != "auto":
        return engine == "process"
    return not asks and not _has_ray() and (device == "cpu" or not _has_gpu())


def _has_ray() -> bool:
    """Whether Ray runs already, or a cluster's is meant; looked up without importing it, which takes a second."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return True
    return os.environ.get("RAY_ADDRESS", "local") != "local" or Path(_CLUSTER).exists()


def _has_gpu() -> bool:
    return any(Path(device).exists() for device in _GPUS)
