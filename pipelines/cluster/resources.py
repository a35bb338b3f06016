"""The resources that a cluster or this machine offers to a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Numbers of logical CPUs and GPUs of all nodes."""

    cpus: float
    gpus: float
