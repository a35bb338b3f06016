"""How the stages of a run share the machine or the cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """How the stages share the cluster.

    Attributes:
        actors: encode actors.
        gpus_per_actor: GPUs of each, 0 on the CPU.
        cpus_per_actor: logical CPUs of each.
        cpus_per_read: logical CPUs of a read task.
        cpus_per_decode: logical CPUs of a decode task.
        threads_per_actor: torch threads of each actor, None for torch's own choice.
    """

    actors: int
    gpus_per_actor: float
    cpus_per_actor: float
    cpus_per_read: float
    cpus_per_decode: float
    threads_per_actor: int | None
