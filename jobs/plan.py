"""`isthmus plan`: what `isthmus embed` with the same options would do, take and cost. Changes nothing."""

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
    """Config of `isthmus plan`: all of `isthmus embed`'s, and what to measure and to reckon with."""

    probe_rows: int = Field(default=1000, ge=1, description="Rows to read, decode and encode, to measure them.")
    probe_s: float = Field(default=20.0, gt=0, description="Seconds after which measuring ends with what it has.")
    cpus: float | None = Field(default=None, gt=0, description="Cores of the cluster; default: this machine's.")
    gpus: float | None = Field(default=None, ge=0, description="GPUs of the cluster; default: this machine's.")
    price_per_hour: float | None = Field(default=None, ge=0, description="Of the whole cluster, in any currency.")
    price_per_cpu_hour: float | None = Field(default=None, ge=0, description="In its place: of a core,")
    price_per_gpu_hour: float | None = Field(default=None, ge=0, description="and of a GPU.")

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        parts = (self.price_per_cpu_hour, self.price_per_gpu_hour)
        if self.price_per_hour is not None and any(price is not None for price in parts):
            raise ValueError(
                f"price_per_hour {self.price_per_hour:g}: is of the whole cluster; drop it, or drop "
                "--price-per-cpu-hour and --price-per-gpu-hour"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """What an embed run would do and take."""

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
            facts["rows replaced"] = f"{found.rows_replaced:,} of files that changed"
        if found.rows_gone:
            facts["rows gone"] = f"{found.rows_gone:,} of files that are gone; `isthmus sync` would remove them"
        if found.estimate is None or found.sample is None:
            return facts
        took, sample = found.estimate, found.sample
        facts |= {
            "rate": f"{took.rows_per_s:,.1f} rows/s; {took.bottleneck} decides",
            "time": _duration(took.seconds),
            "actors": f"{found.actors}; {took.cores_per_actor:.2g} cores read and decode for one, "
            f"{found.machine.cpus:g} cores keep {took.actors_fed:.2g} busy",
            "memory": f"about {size_text(sample.actor_bytes)} an actor, of it {size_text(sample.encoder_bytes)} the "
            "encoder at work (peak resident memory of this process, polled)",
            "table size": f"about {size_text(took.table_bytes)} more",
            "measured": f"{sample.rows:,} rows of {sample.records:,} records, {sample.rejected} of them rejected",
        }
        if sample.gpu_bytes is not None:
            facts["GPU memory"] = size_text(sample.gpu_bytes)
        if took.cost is not None:
            facts["cost"] = f"{took.cost:,.2f}; {took.cost_per_million_rows:,.2f} a million rows"
        return facts


def run(config: PlanConfig) -> PlanReport:
    """Plan an embed run: list the corpus, read the ledger, time a sample of what is left.

    Raises:
        ValueError: what `isthmus embed` would also refuse; or GPUs where this machine has none to measure on.
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
    """What to reckon with; an encoder is measured on what is here.

    Raises:
        ValueError: GPUs were asked for and this machine has none.
    """
    import psutil
    import torch

    from pipelines.cluster.machine import cores
    from pipelines.ingest.estimating import Machine

    here = 0 if config.device == "cpu" else torch.cuda.device_count()
    gpus = float(here) if config.gpus is None else config.gpus
    if gpus and not here:
        raise ValueError(f"gpus {gpus:g}: this machine has none to measure the encoder on; run the plan where one is")
    cpus = config.cpus or float(cores())
    return Machine(cpus=cpus, gpus=gpus, memory_bytes=psutil.virtual_memory().total)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
