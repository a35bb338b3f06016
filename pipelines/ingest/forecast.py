"""Forecast of an embed run: list the corpus, read the ledger, time a sample, estimate the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace

from encoders.description import Description
from pipelines.cluster.resources import Resources
from pipelines.ingest import estimating
from pipelines.ingest.embed import table_schema
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.engines.probe import ProbeEngine
from pipelines.ingest.estimating import Estimate, Machine, Prices, ProbeSample
from pipelines.ingest.incremental import Plan, make_plan
from pipelines.ingest.job import EmbedJob, build_stages, rows_of_a_block
from pipelines.ingest.placing import registered_corpora
from pipelines.ingest.planning import group_work, plan_pools
from pipelines.ledger.ledger import Ledger
from pipelines.sources import Corpus
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_dataset
from pipelines.tables.retyping import check_table, settled_types


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The work, time, memory and cost of an embed run.

    Attributes:
        table: where the rows would go.
        table_exists: whether the table exists.
        encoder: the encoder's name.
        shards: number of shards of the corpus.
        shards_to_read: number of shards that are not complete in the table.
        read_tasks: tasks in which the run would read them on Ray.
        rows_to_embed: rows that are not settled yet.
        about: whether `rows_to_embed` is an estimate, because some shards do not state their rows.
        rows_skipped: rows that the table already holds or rejected.
        rows_replaced: settled rows of changed files. They leave the table when the new rows arrive.
        rows_gone: settled rows of files that were deleted from the corpus. `isthmus sync` would remove them.
        actors: number of encode actors or worker processes of the run.
        machine: cores, GPUs and memory that the estimate assumes.
        sample: what the probe measured; None if nothing is left to do.
        estimate: time, size and cost of the run, from the sample; None if nothing is left to do.
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


def forecast(
    source: Corpus,
    description: Description,
    table: TableRef,
    settings: EmbedSettings,
    machine: Machine,
    prices: Prices,
    *,
    rows: int,
    seconds: float,
) -> Forecast:
    """Plan an embed run without writing anything.

    Args:
        source: the corpus.
        description: the encoder's card and image transform.
        table: where the rows would go.
        settings: the settings of the run.
        machine: cores, GPUs and memory that the run would have.
        prices: prices of one hour.
        rows: approximate number of rows to sample.
        seconds: seconds after which no further block is sampled.

    Raises:
        ValueError: the corpus, the encoder and the table do not fit together.
        OSError: a store cannot be read.
    """
    resources = Resources(cpus=machine.cpus, gpus=machine.gpus)
    existing = open_dataset(table, missing_ok=True)
    if existing is not None:
        source = source.adopting(settled_types(existing, source.schema()))
    schema = table_schema(source, description, settings)
    check_table(table, existing, schema, settings.corpus)
    coverage = Ledger.reconcile(table).coverage
    corpora = registered_corpora(existing, coverage)
    todo = make_plan(source, coverage, description, replace(settings, delete_gone=True), corpora)
    job = EmbedJob(source=source, description=description, settings=settings, table=table, schema=schema)
    engine = ProbeEngine(settings, resources, rows=rows, seconds=seconds)
    block_rows = rows_of_a_block(description, settings, resources.gpus)
    pools = engine.plan(todo.work, block_rows).pools
    sample = _sample(job, engine, todo, block_rows)
    left = estimating.backlog(todo.work, sample)
    most = plan_pools(resources, actors=settings.actors, gpus_per_actor=settings.gpus_per_actor).actors
    return Forecast(
        table=str(table),
        table_exists=existing is not None,
        encoder=description.card.name,
        shards=todo.shards,
        shards_to_read=len(todo.work),
        read_tasks=len(group_work(todo.work, most)),
        rows_to_embed=left.rows,
        about=left.about,
        rows_skipped=todo.skipped_rows,
        rows_replaced=todo.changed_rows,
        rows_gone=todo.gone_rows,
        actors=pools.actors,
        machine=machine,
        sample=sample,
        estimate=estimating.estimate(left.rows, sample, machine, pools, prices) if sample else None,
    )


def _sample(job: EmbedJob, engine: ProbeEngine, todo: Plan, block_rows: int) -> ProbeSample | None:
    """Time the run's own stages on some of the work; None if nothing is left to do."""
    if not todo.work:
        return None
    plan = engine.plan(todo.work, block_rows)
    stages = build_stages(job, plan.pools, plan.block_rows)
    engine.run(stages, todo.work, None, lambda done: None)
    return engine.sample
