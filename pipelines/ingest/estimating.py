"""Estimate of an embed run, from the remaining work and a timed sample. Pure functions of plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.ingest.stages.pools import PoolPlan
from pipelines.ingest.stages.reading import ShardWork

# Share of the rate that remains after what the probe does not time: envelopes, staging, commits, Ray's own processes.
_EFFICIENCY = 0.85
_RAY_START_S = 8.0
_BUSY_BELOW = 0.8
_STAGES = ("read", "decode", "encode")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the run will have: CPU cores, GPUs, and memory in bytes."""

    cpus: float
    gpus: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices of one hour, in any currency: of the whole cluster, or of one core and of one GPU."""

    machine_hour: float | None = None
    cpu_hour: float | None = None
    gpu_hour: float | None = None

    def an_hour_of(self, machine: Machine) -> float | None:
        """The price of one hour of the machine; None if no price is known."""
        if self.machine_hour is not None:
            return self.machine_hour
        if self.cpu_hour is None and self.gpu_hour is None:
            return None
        return (self.cpu_hour or 0.0) * machine.cpus + (self.gpu_hour or 0.0) * machine.gpus


@dataclass(frozen=True, kw_only=True)
class ProbeSample:
    """What a probe of the corpus measured in one process.

    Attributes:
        records: number of records read.
        rows: rows made of these records, including rejected ones. A record with several captions becomes several rows.
        rejected: number of these rows that were rejected.
        seconds: stage → seconds.
        sized_records: number of records whose size in bytes is known.
        sized_bytes: size of these records in bytes.
        table_bytes: size in bytes of the rows in the table.
        threads: torch threads of the encoder.
        load_s: seconds to load the encoder.
        encoder_bytes: peak resident memory that loading and encoding added.
        actor_bytes: peak resident memory of the whole process.
        cpu_share: CPU seconds of the process divided by wall seconds. Well below 1, other processes used the machine.
        gpu_bytes: peak GPU memory; None on the CPU.
    """

    records: int
    rows: int
    rejected: int
    seconds: dict[str, float]
    sized_records: int
    sized_bytes: int
    table_bytes: int
    threads: int
    load_s: float
    encoder_bytes: int
    actor_bytes: int
    cpu_share: float = 1.0
    gpu_bytes: int | None = None

    def each(self, stage: str) -> float:
        """Seconds that a stage takes for one row."""
        return self.seconds.get(stage, 0.0) / max(self.rows, 1)


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Rows still to embed.

    Attributes:
        rows: number of rows.
        about: whether `rows` is an estimate, because some shards do not state their rows or records give several rows.
    """

    rows: int
    about: bool


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The time, size and cost of a run.

    Attributes:
        rows_per_s: rows per second once all actors are working.
        seconds: wall time of the whole run in seconds, including the start.
        bottleneck: the stage that limits the rate.
        cores_per_actor: cores that read and decode as fast as one encode actor encodes.
        actors_fed: number of encode actors that the machine's cores can keep busy.
        table_bytes: bytes that the rows add to the table.
        cost: cost of the run; None without prices.
        cost_per_million_rows: cost of a million rows at `rows_per_s`; None without prices.
        stages: for each stage, milliseconds per row and rows per second of one worker.
        notes: warnings about the run, each with its remedy if there is one.
    """

    rows_per_s: float
    seconds: float
    bottleneck: str | None
    cores_per_actor: float
    actors_fed: float
    table_bytes: int
    cost: float | None
    cost_per_million_rows: float | None
    stages: list[dict[str, float | str | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def spread(items: Sequence[ShardWork], count: int) -> list[ShardWork]:
    """At most `count` items, evenly spread over all of them, because the shards of a corpus often differ."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def backlog(work: Sequence[ShardWork], sample: ProbeSample | None) -> Backlog:
    """The rows still to embed: counted for shards whose records the listing knows, else estimated from their size."""
    if not work or sample is None:
        return Backlog(rows=0, about=False)
    done = sum(stop - start for item in work for start, stop in item.done)
    known = sum(item.shard.rows for item in work if item.shard.rows is not None)
    unknown_bytes = sum(item.shard.size_bytes for item in work if item.shard.rows is None)
    unknown = round(unknown_bytes * sample.sized_records / sample.sized_bytes) if sample.sized_bytes else 0
    records = max(0, known + unknown - done)
    rows_of_a_record = sample.rows / max(sample.records, 1)
    about = any(item.shard.rows is None for item in work) or sample.rows != sample.records
    return Backlog(rows=round(records * rows_of_a_record), about=about)


def estimate(rows: int, sample: ProbeSample, machine: Machine, pools: PoolPlan, prices: Prices) -> Estimate:
    """Estimate the time, size and cost of embedding some rows.

    Args:
        rows: number of rows still to embed.
        sample: what a probe measured in one process.
        machine: cores, GPUs and memory of the run.
        pools: the actors that share the machine.
        prices: prices of one hour.
    """
    limits = stage_limits(sample, machine, pools)
    bottleneck = min(limits, key=lambda stage: limits[stage]) if limits else None
    rate = _EFFICIENCY * limits[bottleneck] if bottleneck else 0.0
    seconds = _RAY_START_S + sample.load_s + rows / rate if rate else 0.0
    hour = prices.an_hour_of(machine)
    kept = max(sample.rows - sample.rejected, 1)
    feeding = (sample.each("read") + sample.each("decode")) / max(sample.each("encode"), 1e-9)
    return Estimate(
        rows_per_s=round(rate, 2),
        seconds=round(seconds, 1),
        bottleneck=bottleneck,
        cores_per_actor=round(feeding, 3),
        actors_fed=actors_fed(feeding, sample.threads, machine, pools),
        table_bytes=round(rows * (1 - sample.rejected / max(sample.rows, 1)) * sample.table_bytes / kept),
        cost=None if hour is None else round(hour * seconds / 3600, 4),
        cost_per_million_rows=None if hour is None or not rate else round(hour / 3600 / rate * 1e6, 4),
        stages=[_stage_row(sample, stage) for stage in _STAGES if stage in sample.seconds],
        notes=notes(sample, machine, pools, feeding),
    )


def stage_limits(sample: ProbeSample, machine: Machine, pools: PoolPlan) -> dict[str, float]:
    """Rows per second that each stage allows: stage → rate.

    On the CPU all stages share the cores, so there is one limit, under the name of the stage that takes the most CPU
    time. With GPUs the actors encode, and the cores that they leave free read and decode.
    """
    read, decode, encode = (sample.each(stage) for stage in _STAGES)
    if read + decode + encode <= 0:
        return {}
    if pools.gpus_per_actor > 0:
        cores = max(1.0, machine.cpus - pools.actors * pools.cpus_per_actor)
        feeding = "decode" if decode >= read else "read"
        limits = {feeding: cores / (read + decode) if read + decode else math.inf}
        return limits | {"encode": pools.actors / encode if encode else math.inf}
    busy = {"read": read, "decode": decode, "encode": encode * sample.threads}
    heaviest = max(busy, key=lambda stage: busy[stage])
    by_actors = pools.actors / (decode + encode) if decode + encode else math.inf
    return {heaviest: min(machine.cpus / sum(busy.values()), by_actors)}


def actors_fed(feeding_cores: float, threads: int, machine: Machine, pools: PoolPlan) -> float:
    """The number of encode actors that the cores can keep busy.

    Args:
        feeding_cores: cores that read and decode for one actor.
        threads: torch threads of one actor on the CPU.
        machine: cores, GPUs and memory of the run.
        pools: the actors that share the machine.
    """
    own = pools.cpus_per_actor if pools.gpus_per_actor > 0 else float(threads)
    return round(machine.cpus / (own + feeding_cores), 2)


def notes(sample: ProbeSample, machine: Machine, pools: PoolPlan, feeding_cores: float) -> list[str]:
    """Warnings about the run, each with its remedy if there is one."""
    said = []
    need = pools.actors * sample.actor_bytes
    if need > machine.memory_bytes:
        said.append(
            f"{pools.actors} actors need about {need / 1e9:.1f} GB, more than the {machine.memory_bytes / 1e9:.1f} GB "
            f"of memory; use --actors {max(1, int(machine.memory_bytes // max(sample.actor_bytes, 1)))}"
        )
    wanted = pools.actors * (pools.cpus_per_actor + feeding_cores)
    if pools.gpus_per_actor > 0 and wanted > machine.cpus:
        said.append(
            f"{pools.actors} actors need {wanted:.0f} cores but there are {machine.cpus:g}: GPUs will wait; add cores"
        )
    if sample.gpu_bytes is None and sample.cpu_share < _BUSY_BELOW:
        said.append(
            f"this machine was busy: the sample got {sample.cpu_share:.0%} of a core; an idle machine is faster"
        )
    if sample.rejected:
        said.append(f"{sample.rejected} of {sample.rows} sampled rows were rejected")
    return said


def _stage_row(sample: ProbeSample, stage: str) -> dict[str, float | str | None]:
    each = sample.each(stage)
    return {
        "stage": stage,
        "ms_per_row": round(each * 1e3, 3),
        "rows_per_s_of_a_worker": round(1 / each, 1) if each > 0 else None,
    }
