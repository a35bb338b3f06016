"""`isthmus plan`: estimate the work, time, memory and cost of `isthmus embed`. Changes nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from cyclopts import Parameter
from pydantic import Field, model_validator

from jobs.embed import EmbedConfig, prepare

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipelines.ingest.estimating import Machine
    from pipelines.ingest.forecast import Forecast


@Parameter(name="*")
class PlanConfig(EmbedConfig):
    """Config of `isthmus plan`: all options of `isthmus embed`, the size of the sample, the cluster and its prices."""

    probe_rows: int = Field(
        default=1000, ge=1, description="Number of rows to read, decode and encode for the measurement."
    )
    probe_s: float = Field(
        default=20.0, gt=0, description="Seconds after which the measurement ends, even with fewer rows."
    )
    cpus: float | None = Field(
        default=None, gt=0, description="CPU cores of the cluster to plan for; default: those of this machine."
    )
    gpus: float | None = Field(
        default=None, ge=0, description="GPUs of the cluster to plan for; default: those of this machine."
    )
    price_per_hour: float | None = Field(
        default=None, ge=0, description="Price of the whole cluster for one hour, in any currency."
    )
    price_per_cpu_hour: float | None = Field(
        default=None, ge=0, description="Price of one CPU core for one hour, instead of --price-per-hour."
    )
    price_per_gpu_hour: float | None = Field(
        default=None, ge=0, description="Price of one GPU for one hour, instead of --price-per-hour."
    )

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        parts = (self.price_per_cpu_hour, self.price_per_gpu_hour)
        if self.price_per_hour is not None and any(price is not None for price in parts):
            raise ValueError(
                f"price_per_hour {self.price_per_hour:g}: is the price of the whole cluster; drop it, or drop "
                "--price-per-cpu-hour and --price-per-gpu-hour"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """The forecast of an embed run."""

    forecast: Forecast

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self.forecast)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        from jobs.display import rows_table

        facts = Table(box=None, show_header=False, pad_edge=False)
        facts.add_column(style="bold")
        facts.add_column(overflow="fold")
        for name, value in self._facts().items():
            facts.add_row(name, value)
        parts: list[RenderableType] = [facts]
        if self.forecast.estimate is not None:
            parts += [Text("\nstages", style="bold"), rows_table(self.forecast.estimate.stages)]
            parts += [Text(f"note: {note}") for note in self.forecast.estimate.notes]
        return Group(*parts)

    def _facts(self) -> dict[str, str]:
        from jobs.display import size_text

        found = self.forecast
        about = "about " if found.about else ""
        facts = {
            "table": f"{found.table} ({'there' if found.table_exists else 'new'})",
            "shards": f"{found.shards_to_read:,} to read of {found.shards:,}, in {found.read_tasks:,} tasks",
            "rows": f"{about}{found.rows_to_embed:,} to embed, {found.rows_skipped:,} skipped",
        }
        if found.rows_replaced:
            facts["rows replaced"] = f"{found.rows_replaced:,} of changed files"
        if found.rows_gone:
            facts["rows gone"] = f"{found.rows_gone:,} of deleted files; `isthmus sync` would remove them"
        if found.estimate is None or found.sample is None:
            return facts
        took, sample = found.estimate, found.sample
        facts |= {
            "rate": f"{took.rows_per_s:,.1f} rows/s; the bottleneck is {took.bottleneck}",
            "time": _duration(took.seconds),
            "actors": f"{found.actors}; one needs {took.cores_per_actor:.2g} cores for reading and decoding, "
            f"{found.machine.cpus:g} cores keep {took.actors_fed:.2g} busy",
            "memory": f"about {size_text(sample.actor_bytes)} for each actor, {size_text(sample.encoder_bytes)} of it "
            "for the encoder (peak resident memory of this process, polled)",
            "table size": f"grows by about {size_text(took.table_bytes)}",
            "measured": f"{sample.rows:,} rows of {sample.records:,} records, {sample.rejected} rows rejected",
        }
        if sample.gpu_bytes is not None:
            facts["GPU memory"] = size_text(sample.gpu_bytes)
        if took.cost is not None:
            facts["cost"] = f"{took.cost:,.2f}; {took.cost_per_million_rows:,.2f} per million rows"
        return facts


def run(config: PlanConfig) -> PlanReport:
    """Plan an embed run: list the corpus, read the ledger, time a sample of the remaining rows.

    Raises:
        ValueError: `isthmus embed` would refuse the config, or `gpus` is above 0 but this machine has no GPU.
        OSError: a store cannot be read.
    """
    from pipelines.ingest.estimating import Prices
    from pipelines.ingest.forecast import forecast

    source, description, table, settings = prepare(config)
    prices = Prices(
        machine_hour=config.price_per_hour, cpu_hour=config.price_per_cpu_hour, gpu_hour=config.price_per_gpu_hour
    )
    found = forecast(
        source,
        description,
        table,
        settings,
        _machine(config),
        prices,
        rows=config.probe_rows,
        seconds=config.probe_s,
    )
    return PlanReport(forecast=found)


def _machine(config: PlanConfig) -> Machine:
    """The machine to plan for. The encoder itself is measured on this machine.

    Raises:
        ValueError: `gpus` is above 0 and this machine has no GPU.
    """
    import psutil
    import torch

    from pipelines.cluster.machine import cores
    from pipelines.ingest.estimating import Machine

    here = 0 if config.device == "cpu" else torch.cuda.device_count()
    gpus = float(here) if config.gpus is None else config.gpus
    if gpus and not here:
        raise ValueError(
            f"gpus {gpus:g}: this machine has no GPU to measure the encoder on; run the plan on one that has"
        )
    cpus = config.cpus or float(cores())
    return Machine(cpus=cpus, gpus=gpus, memory_bytes=psutil.virtual_memory().total)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
