"""`isthmus plan`: what `isthmus embed` with the same options would do, take and cost. Changes nothing."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from cyclopts import Parameter
from pydantic import Field, model_validator

from jobs.embed import EmbedConfig, prepare

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipelines.ingest.estimating import Estimate, Machine, ProbeSample


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
    """What an embed run would do and take.

    Attributes:
        table: where the rows would go.
        table_exists: whether it is there already.
        shards: of the corpus.
        shards_to_read: of them, those that are not complete in the table.
        rows_to_embed: see `about`.
        about: whether the rows are estimated, because some shards do not know theirs.
        rows_skipped: that the table holds, or rejected, already.
        rows_replaced: settled rows of files that changed: they leave the table as the new ones come.
        rows_gone: settled rows of files that are gone from the corpus: `isthmus sync` would remove them.
        actors: encode actors of the run.
        machine: cores, GPUs and memory that were reckoned with.
        sample: what was measured; None where nothing is left to do.
        estimate: what was reckoned from it.
    """

    table: str
    table_exists: bool
    encoder: str
    shards: int
    shards_to_read: int
    read_tasks: int
    rows_to_embed: int
    about: bool
    rows_skipped: int
    rows_replaced: int
    rows_gone: int
    actors: int
    machine: Machine
    sample: ProbeSample | None
    estimate: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)

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
        if self.estimate is not None:
            parts += [Text("\nstages", style="bold"), rows_table(self.estimate.stages)]
            parts += [Text(f"note: {note}") for note in self.estimate.notes]
        return Group(*parts)

    def _facts(self) -> dict[str, str]:
        from jobs.display import size_text

        about = "about " if self.about else ""
        facts = {
            "table": f"{self.table} ({'there' if self.table_exists else 'new'})",
            "shards": f"{self.shards_to_read:,} to read of {self.shards:,}, in {self.read_tasks:,} tasks",
            "rows": f"{about}{self.rows_to_embed:,} to embed, {self.rows_skipped:,} skipped",
        }
        if self.rows_replaced:
            facts["rows replaced"] = f"{self.rows_replaced:,} of files that changed"
        if self.rows_gone:
            facts["rows gone"] = f"{self.rows_gone:,} of files that are gone; `isthmus sync` would remove them"
        if self.estimate is None or self.sample is None:
            return facts
        took, sample = self.estimate, self.sample
        facts |= {
            "rate": f"{took.rows_per_s:,.1f} rows/s; {took.bottleneck} decides",
            "time": _duration(took.seconds),
            "actors": f"{self.actors}; {took.cores_per_actor:.2g} cores read and decode for one, "
            f"{self.machine.cpus:g} cores keep {took.actors_fed:.2g} busy",
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
        ValueError: what `isthmus embed` would refuse too; or GPUs to reckon with where none can be measured.
        OSError: a store cannot be read.
    """
    from dataclasses import replace

    from pipelines.cluster.resources import Resources
    from pipelines.ingest import estimating
    from pipelines.ingest.embed import table_schema
    from pipelines.ingest.incremental import make_plan
    from pipelines.ingest.planning import plan_work
    from pipelines.ingest.probing import probe
    from pipelines.ingest.sink.ledger import Ledger
    from pipelines.ingest.stage_settings import rows_of_a_block
    from pipelines.tables.opening import check_schema, open_dataset

    source, description, table, settings = prepare(config)
    machine = _machine(config)
    resources = Resources(cpus=machine.cpus, gpus=machine.gpus)
    schema = table_schema(source, description, settings)
    existing = open_dataset(table, missing_ok=True)
    if existing is not None:
        check_schema(existing.schema, schema, table)
    ledger = Ledger.reconcile(table)
    todo = make_plan(source, ledger.coverage, description, replace(settings, delete_gone=True))
    groups, pools = plan_work(
        todo.work,
        resources,
        rows_of_a_block(description, settings, resources.gpus),
        actors=settings.actors,
        gpus_per_actor=settings.gpus_per_actor,
    )
    sample = None
    if todo.work:
        sample = probe(
            source, todo.work, schema, description, settings, pools, rows=config.probe_rows, seconds=config.probe_s
        )
    rows = estimating.backlog(todo.work, sample)
    prices = estimating.Prices(
        machine_hour=config.price_per_hour, cpu_hour=config.price_per_cpu_hour, gpu_hour=config.price_per_gpu_hour
    )
    return PlanReport(
        table=str(table),
        table_exists=existing is not None,
        encoder=description.card.name,
        shards=todo.shards,
        shards_to_read=len(todo.work),
        read_tasks=len(groups),
        rows_to_embed=rows.rows,
        about=rows.about,
        rows_skipped=todo.skipped_rows,
        rows_replaced=todo.changed_rows,
        rows_gone=todo.gone_rows,
        actors=pools.actors,
        machine=machine,
        sample=sample,
        estimate=estimating.estimate(rows.rows, sample, machine, pools, prices) if sample else None,
    )


def _machine(config: PlanConfig) -> Machine:
    """What to reckon with; an encoder is measured on what is here.

    Raises:
        ValueError: GPUs were asked for and this machine has none.
    """
    import psutil
    import torch

    from pipelines.ingest.estimating import Machine

    here = 0 if config.device == "cpu" else torch.cuda.device_count()
    gpus = float(here) if config.gpus is None else config.gpus
    if gpus and not here:
        raise ValueError(f"gpus {gpus:g}: this machine has none to measure the encoder on; run the plan where one is")
    cpus = config.cpus or float(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count()
    )
    return Machine(cpus=cpus, gpus=gpus, memory_bytes=psutil.virtual_memory().total)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
