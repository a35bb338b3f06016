"""How the stages of a run share the machine or the cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """The number of encode actors and the resources of each stage.

    Attributes:
        actors: number of encode actors.
        gpus_per_actor: GPUs per encode actor; 0 on the CPU.
        cpus_per_actor: logical CPUs per encode actor.
        cpus_per_read: logical CPUs per read task.
        cpus_per_decode: logical CPUs per decode task.
        threads_per_actor: torch threads per encode actor; None for torch's own choice.
    """

    actors: int
    gpus_per_actor: float
    cpus_per_actor: float
    cpus_per_read: float
    cpus_per_decode: float
    threads_per_actor: int | None
