"""What a cluster or this machine offers to a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the cluster offers."""

    cpus: float
    gpus: float
