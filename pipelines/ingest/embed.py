"""The embed pipeline, end to end: plan, run the stages, commit, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pyarrow as pa

from encoders.description import Description
from pipelines.ingest.embed_report import EmbedReport, find_bottleneck, hint_for, shares
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.engines.early import Reserve
from pipelines.ingest.engines.processes import ProcessEngine, fits_this_machine
from pipelines.ingest.engines.protocol import Engine, Ran, WorkersDiedError
from pipelines.ingest.identity import PICTURE_DIGEST, PICTURE_DIGEST_KEY
from pipelines.ingest.incremental import Plan, check_deletions, expected_rows, make_plan, remaining
from pipelines.ingest.job import EmbedJob, build_stages, rows_of_a_block
from pipelines.ingest.placing import registered_corpora
from pipelines.ingest.planning import plan_pools
from pipelines.ingest.sink.committing import Committer
from pipelines.ingest.sink.ledger import Ledger
from pipelines.ingest.sink.queueing import CommitQueue, SinkLimits
from pipelines.ingest.sink.stale import StaleRows
from pipelines.ingest.stages.reading import ShardWork
from pipelines.ingest.stages.reuse import index_digests, known_vectors
from pipelines.rows.contract import (
    CAPTION,
    IMAGE_URI,
    INTERNAL,
    ITEM_ID,
    POSITION,
    ROW_ID,
    THUMBNAIL,
    VECTOR_COLUMNS,
    vector_type,
)
from pipelines.rows.pace import Pace
from pipelines.sources import Corpus
from pipelines.sources.base import Source
from pipelines.store.faults import fault
from pipelines.store.retries import retry
from pipelines.store.storage import TableRef
from pipelines.tables.corpora import remember_corpora
from pipelines.tables.jobs import remember_job
from pipelines.tables.lease import Lease
from pipelines.tables.opening import check_schema, create_dataset, open_dataset
from pipelines.tables.provenance import Provenance, library_versions

log = logging.getLogger(__name__)
Progress = Callable[[int, int | None], None]


def embed(
    source: Corpus,
    description: Description,
    table: TableRef,
    settings: EmbedSettings,
    progress: Progress = lambda done, total: None,
    reserve: Reserve | None = None,
) -> EmbedReport:
    """Embed what the table does not hold yet.

    Args:
        source: the corpus.
        description: the encoder's card and image transform.
        table: where the rows go; created if missing.
        settings: the settings of the run.
        progress: called with (rows settled so far, total rows or None if unknown).
        reserve: worker processes that were started early; None if there are none.

    Returns:
        The report of this run.

    Raises:
        ValueError: the corpus, the encoder and the table do not fit together.
        LeaseHeldError: another job writes to the table.
        OSError: a store fails; the table is as of its last commit, and the next run continues from there.
    """
    started = time.perf_counter()
    schema = table_schema(source, description, settings)
    existing = open_dataset(table, missing_ok=True)
    if existing is not None:
        check_schema(existing.schema, schema, table)
        schema = existing.schema
    ledger = Ledger.reconcile(table)
    corpora = registered_corpora(existing, ledger.coverage)
    plan = make_plan(source, ledger.coverage, description, settings, corpora)
    if plan.is_empty and not settings.retry and existing is not None:
        return _report(plan, description, table, started, version=int(existing.version))
    engine = _choose_engine(settings, reserve)
    # Refuse what the machine cannot do before the table is created.
    plan_pools(engine.resources(), actors=settings.actors, gpus_per_actor=settings.gpus_per_actor)
    if existing is None:
        create_dataset(table, schema)
    fault("before_lease")
    lease = Lease.acquire(table)
    ran = None
    try:
        fault("after_lease")
        now = open_dataset(table)
        ledger.record_missing(now)
        # `isthmus fuse` may have added or changed the fused column between the first look and the lease.
        schema = now.schema
        # Another driver may have committed between the plan and the lease.
        plan = make_plan(source, ledger.coverage, description, settings, registered_corpora(now, ledger.coverage))
        check_deletions(plan, ledger.coverage, settings, table)
        remember_corpora(table, plan.corpora)
        if settings.job is not None:
            remember_job(table, settings.corpus, settings.job)
        stale = StaleRows(plan.stale)
        stale.find(open_dataset(table))
        committer = Committer(table, ledger, lease, stale=stale, max_reject_rate=settings.max_reject_rate)
        committer.forget_unsettled_rejects()
        if settings.retry and committer.reopen(settings.retry, plan.current):
            plan = make_plan(source, ledger.coverage, description, settings, plan.corpora)
        if plan.work:
            job = EmbedJob(
                source=source, description=description, settings=settings, table=table, schema=schema, files=plan.files
            )
            ran = _work_off(job, plan.work, committer, engine, progress)
            _check_complete(plan, ledger, table)
        committer.sweep()
        ledger.compact()
        index_digests(table)
        fault("before_release")
    finally:
        lease.release()
    version = int(open_dataset(table).version)
    return _report(plan, description, table, started, version=version, committer=committer, ran=ran)


def _choose_engine(settings: EmbedSettings, reserve: Reserve | None) -> Engine:
    """Worker processes if the run fits this machine, else Ray, which is imported only then."""
    return ProcessEngine(settings, reserve) if fits_this_machine(settings) else _ray_engine(settings)


def _ray_engine(settings: EmbedSettings) -> Engine:
    from pipelines.ingest.engines.ray_data import RayEngine

    return RayEngine(settings)


def _work_off(job: EmbedJob, work: list[ShardWork], committer: Committer, engine: Engine, progress: Progress) -> Ran:
    """Run the stages over the work until all of it is committed.

    If too many worker processes die, Ray does the remaining work.

    Raises:
        WorkersDiedError: worker processes died one after the other, and `--engine process` forbids Ray.
    """
    settings = job.settings
    block_rows = rows_of_a_block(job.description, settings, engine.resources().gpus)
    limits = SinkLimits(
        fragment_rows=settings.fragment_rows,
        commit_rows=settings.commit_rows,
        commit_interval_s=settings.commit_interval_s,
        block_rows=block_rows,
    )
    queue = CommitQueue(committer, limits, retry(open_dataset(job.table).count_rows, job.table.uri))
    known, expected = known_vectors(job.table, settings), expected_rows(work)

    def run_on(engine: Engine, left: list[ShardWork]) -> Ran:
        plan = engine.plan(left, block_rows)
        stages = build_stages(job, plan.pools, plan.block_rows, known)
        return engine.run(stages, left, queue, lambda rows: progress(rows, expected))

    try:
        return run_on(engine, work)
    except WorkersDiedError as error:
        if settings.engine == "process":
            raise
        log.warning("%s; Ray does the remaining work", error)
    return run_on(_ray_engine(settings), remaining(work, committer.coverage))


def table_schema(source: Source, description: Description, settings: EmbedSettings) -> pa.Schema:
    """The schema of the table that this run would create, with its provenance in the metadata."""
    fields = [
        pa.field(ROW_ID, pa.string(), nullable=False),
        pa.field(ITEM_ID, pa.string()),
        pa.field(CAPTION, pa.string()),
        pa.field(IMAGE_URI, pa.string()),
        *source.schema(),
    ]
    if settings.thumbnail_px and "image" in settings.modalities:
        fields.append(pa.field(THUMBNAIL, pa.binary()))
    # A corpus that was emptied excludes no modality; it needs no vector that the table lacks.
    is_empty = all(shard.rows == 0 for shard in source.shards())
    for modality in () if is_empty else settings.modalities:
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
            "backend": settings.options.backend,
            "vector_dtype": settings.vector_dtype,
            "normalised": True,
            PICTURE_DIGEST_KEY: PICTURE_DIGEST,
            "libraries": library_versions(),
        },
    )
    return pa.schema(fields, metadata=provenance.to_metadata())


def _check_complete(plan: Plan, ledger: Ledger, table: TableRef) -> None:
    """Check that every record is settled: a run that ends without this has failed.

    Raises:
        RuntimeError: some shards are not complete.
    """
    lost = [w for w in plan.work if not ledger.coverage.is_complete(w.shard_id, w.shard.rows)]
    if lost:
        raise RuntimeError(
            f"table {table}: {len(lost)} of {len(plan.work)} shards are not complete (first: {lost[0].shard.uri}); "
            "run the same command again to continue"
        )


def _report(
    plan: Plan,
    description: Description,
    table: TableRef,
    started: float,
    *,
    version: int,
    committer: Committer | None = None,
    ran: Ran | None = None,
) -> EmbedReport:
    done = committer.done if committer else None
    rejected = dict(sorted(done.rejected.items())) if done else {}
    rows_in = (done.written if done else 0) + sum(rejected.values())
    seconds = time.perf_counter() - started
    stages = {name: round(value, 3) for name, value in (done.seconds if done else {}).items()}
    bottleneck = find_bottleneck(stages, ran.workers if ran else {})
    pace, crew = done.pace if done else Pace(), ran.stage_workers if ran else None
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
        engine=ran.engine if ran else None,
        read_tasks=ran.read_tasks if ran else 0,
        actors=ran.actors if ran else 0,
        commits=done.commits if done else 0,
        version=version,
        seconds=round(seconds, 3),
        rows_per_s=round(rows_in / seconds, 2) if seconds else 0.0,
        stage_seconds=stages,
        bottleneck=bottleneck,
        hint=hint_for(bottleneck, pace, crew),
        **shares(pace, crew),
        versions=library_versions(),
    )
