"""The embed pipeline, end to end: plan, stream through Ray Data, stage, commit, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from encoders.description import Description
from pipelines.contract import (
    CAPTION,
    IMAGE_URI,
    INTERNAL,
    ITEM_ID,
    POSITION,
    ROW_ID,
    THUMBNAIL,
    VECTOR_COLUMNS,
)
from pipelines.embedding import session
from pipelines.embedding.encoding import vector_type
from pipelines.embedding.graph import build_dataset, rows_of_a_block
from pipelines.embedding.incremental import Plan, check_deletions, expected_rows, make_plan
from pipelines.embedding.planning import PoolPlan, plan_pools, plan_work
from pipelines.embedding.report import EmbedReport, find_bottleneck, hint_for
from pipelines.embedding.reuse import index_digests, known_vectors
from pipelines.embedding.settings import EmbedSettings
from pipelines.faults import fault
from pipelines.provenance import Provenance, library_versions
from pipelines.sink.committing import Committer
from pipelines.sink.jobs import remember_job
from pipelines.sink.lease import Lease
from pipelines.sink.ledger import Ledger
from pipelines.sink.stale import StaleRows
from pipelines.sink.streaming import STAGES_IN_FLIGHT, SinkLimits, StreamingSink
from pipelines.sink.tables import check_schema, create_dataset, open_dataset
from pipelines.sources.base import Source
from pipelines.storage import TableRef

Progress = Callable[[int, int | None], None]


def embed(
    source: Source,
    description: Description,
    table: TableRef,
    settings: EmbedSettings,
    progress: Progress = lambda done, total: None,
) -> EmbedReport:
    """Embed what the table does not hold yet.

    Args:
        source: the corpus.
        description: the encoder's card and image transform.
        table: where the rows go; made if it is not there.
        settings: the rest.
        progress: called with (rows settled so far, rows in all if known).

    Returns:
        The report of this run.

    Raises:
        ValueError: the corpus, the encoder and the table do not fit together.
        LeaseHeldError: another job writes to the table.
        OSError: a store fails; the table is as of its last commit, and the next run goes on from there.
    """
    started = time.perf_counter()
    schema = table_schema(source, description, settings)
    existing = open_dataset(table, missing_ok=True)
    if existing is not None:
        check_schema(existing.schema, schema, table)
        schema = existing.schema
    ledger = Ledger.reconcile(table)
    plan = make_plan(source, ledger.coverage, description, settings)
    if plan.is_empty and not settings.retry and existing is not None:
        return _report(plan, description, table, started, version=int(existing.version))
    session.ensure_ray()
    session.configure_data_context(progress=False)
    resources = session.cluster_resources()
    # What cannot be is refused before the table is made.
    plan_pools(resources, actors=settings.actors, gpus_per_actor=settings.gpus_per_actor)
    if existing is None:
        create_dataset(table, schema)
    fault("before_lease")
    lease = Lease.acquire(table)
    try:
        fault("after_lease")
        ledger.record_missing(open_dataset(table))
        # Another driver may have worked between the plan and the lease.
        plan = make_plan(source, ledger.coverage, description, settings)
        check_deletions(plan, ledger.coverage, settings, table)
        if settings.job is not None:
            remember_job(table, settings.corpus, settings.job)
        stale = StaleRows(plan.stale)
        stale.find(open_dataset(table))
        committer = Committer(table, ledger, lease, stale=stale, max_reject_rate=settings.max_reject_rate)
        committer.forget_unsettled_rejects()
        if settings.retry and committer.reopen(settings.retry, plan.current):
            plan = make_plan(source, ledger.coverage, description, settings)
        rows = rows_of_a_block(description, settings)
        groups, pools = plan_work(
            plan.work, resources, rows, actors=settings.actors, gpus_per_actor=settings.gpus_per_actor
        )
        if groups:
            dataset = build_dataset(source, groups, description, settings, pools, known_vectors(table, settings))
            expected = expected_rows(plan)
            with session.plain_errors():
                _drain(dataset, committer, table, schema, settings, plan, rows, lambda n: progress(n, expected))
            _check_complete(plan, ledger, table)
        committer.sweep()
        ledger.compact()
        index_digests(table)
        fault("before_release")
    finally:
        lease.release()
    return _report(
        plan,
        description,
        table,
        started,
        version=int(open_dataset(table).version),
        committer=committer,
        pools=pools,
        read_tasks=len(groups),
    )


def table_schema(source: Source, description: Description, settings: EmbedSettings) -> pa.Schema:
    """The schema of the table that this run would make, provenance included."""
    fields = [
        pa.field(ROW_ID, pa.string(), nullable=False),
        pa.field(ITEM_ID, pa.string()),
        pa.field(CAPTION, pa.string()),
        pa.field(IMAGE_URI, pa.string()),
        *source.schema(),
    ]
    if settings.thumbnail_px and "image" in settings.modalities:
        fields.append(pa.field(THUMBNAIL, pa.binary()))
    for modality in settings.modalities:
        tower = description.card.tower(modality)
        assert tower is not None
        fields.append(pa.field(VECTOR_COLUMNS[modality], vector_type(tower.dim, settings.vector_dtype)))
    fields += [pa.field(name, pa.int64() if name == POSITION else pa.string()) for name in INTERNAL]
    provenance = Provenance(
        encoder=description.card,
        modalities=settings.modalities,
        settings={
            "preprocessing": settings.options.preprocessing,
            "text_policy": settings.options.text_policy,
            "precision": settings.options.precision,
            "vector_dtype": settings.vector_dtype,
            "normalised": True,
            "libraries": library_versions(),
        },
    )
    return pa.schema(fields, metadata=provenance.to_metadata())


def _drain(
    dataset: Dataset,
    committer: Committer,
    table: TableRef,
    schema: pa.Schema,
    settings: EmbedSettings,
    plan: Plan,
    block_rows: int,
    progress: Callable[[int], None],
) -> None:
    """Run the pipeline: the driver sees references and counts, never rows."""
    limits = SinkLimits(
        fragment_rows=settings.fragment_rows,
        commit_rows=settings.commit_rows,
        commit_interval_s=settings.commit_interval_s,
        block_rows=block_rows,
    )
    sink = StreamingSink(committer, table, schema, limits, plan.files)
    for refs, count in _encoded_blocks(dataset):
        sink.add(refs, count)
        progress(int(sink.rows))
    sink.finish()
    progress(int(sink.rows))


def _encoded_blocks(dataset: Dataset) -> Iterator[tuple[list[Any], int]]:
    """References to the output blocks as they come, with how many of ours they hold (an envelope is a row)."""
    for bundle in dataset.iter_internal_ref_bundles():
        yield list(bundle.block_refs), bundle.num_rows() or 0


def _check_complete(plan: Plan, ledger: Ledger, table: TableRef) -> None:
    """A run that ends without having settled every record is an error, not a success."""
    lost = [w for w in plan.work if not ledger.coverage.is_complete(w.shard_id, w.shard.rows)]
    if lost:
        raise RuntimeError(
            f"table {table}: {len(lost)} of {len(plan.work)} shards are not complete (first: {lost[0].shard.uri}); "
            "run the same command again, it goes on from here"
        )


def _report(
    plan: Plan,
    description: Description,
    table: TableRef,
    started: float,
    *,
    version: int,
    committer: Committer | None = None,
    pools: PoolPlan | None = None,
    read_tasks: int = 0,
) -> EmbedReport:
    done = committer.done if committer else None
    rejected = dict(sorted(done.rejected.items())) if done else {}
    rows_in = (done.written if done else 0) + sum(rejected.values())
    seconds = time.perf_counter() - started
    stages = {name: round(value, 3) for name, value in (done.seconds if done else {}).items()}
    cores = max(1, int(session.cluster_resources().cpus)) if pools else 1
    workers = {"read": cores, "decode": cores, "encode": pools.actors if pools else 1, "stage": STAGES_IN_FLIGHT}
    bottleneck = find_bottleneck(stages, workers)
    return EmbedReport(
        table=str(table),
        encoder=description.card.name,
        rows_in=rows_in,
        written=done.written if done else 0,
        skipped=plan.skipped_rows,
        rejected=rejected,
        overlong=done.overlong if done else 0,
        replaced=done.replaced if done else 0,
        removed=done.removed if done else 0,
        files_changed=len(plan.changed),
        files_gone=len(plan.gone),
        redone=done.redone if done else 0,
        reused_vectors=done.reused if done else 0,
        shards=plan.shards,
        shards_skipped=plan.shards - len(plan.work),
        read_tasks=read_tasks,
        actors=pools.actors if pools else 0,
        commits=done.commits if done else 0,
        version=version,
        seconds=round(seconds, 3),
        rows_per_s=round(rows_in / seconds, 2) if seconds else 0.0,
        stage_seconds=stages,
        bottleneck=bottleneck,
        hint=hint_for(bottleneck),
        versions=library_versions(),
    )
