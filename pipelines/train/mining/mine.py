"""Mining hard negatives of a table at one of its versions: plan, run as Ray tasks, commit once.

Exact search compares every anchor with every candidate. Above 2e10 pairs (about 140,000 rows against themselves) the
method `auto` searches the lists of `pipelines.vectors.lists`. The table's own index cannot be used: it answers one
query after another, which would take hours for a million queries.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.rows.contract import IMAGE_VECTOR, TEXT_VECTOR
from pipelines.store.storage import TableRef
from pipelines.tables.filters import check_filter
from pipelines.tables.opening import open_at
from pipelines.tables.provenance import Provenance
from pipelines.train.mining.catalog import Catalog
from pipelines.train.mining.margins import calibrate
from pipelines.train.mining.mined import check_replaceable, mined_schema, publish
from pipelines.train.mining.mining_report import DirectionReport, MiningReport, summarise
from pipelines.train.mining.mining_settings import Direction, MiningSettings
from pipelines.train.mining.tasks import MinedBlock, MiningInput, catalog_task, lists_task, mine_block

if TYPE_CHECKING:
    import lance

_EXACT_UP_TO_PAIRS = 2e10
_RETRIES = 3
_LOG = logging.getLogger(__name__)


class MiningRecallError(RuntimeError):
    """Approximate search misses too many candidates; nothing was written."""


def mine(table: TableRef, out: TableRef, settings: MiningSettings) -> MiningReport:
    """Mine hard negatives of a table into another table, which is replaced if it is a mined table.

    Args:
        table: a table with vectors of pictures and captions in one space.
        out: the mined table, which `pipelines.train.mining.mined.read_mined` reads.
        settings: how to mine.

    Raises:
        FileNotFoundError: the table does not exist.
        ValueError: the table cannot be mined (no such version, no rows, not both vectors, two spaces), `out` is another
            kind of table, or no negative was found. Nothing was changed.
        MiningRecallError: approximate search misses `settings.min_recall`. Nothing was changed.
    """
    from pipelines.cluster.session import ensure_ray

    started = time.perf_counter()
    dataset = open_at(table, settings.tag if settings.tag is not None else settings.version)
    provenance = check_minable(dataset, table, settings)
    check_replaceable(out)
    ensure_ray()
    job = MiningInput(table=table, version=int(dataset.version), out=out, settings=settings)
    catalog, held = _read_catalog(job)
    places = choose_anchors(catalog, settings, str(table))
    margin = calibrate(catalog.positive[catalog.anchors()]) if settings.margin == "auto" else float(settings.margin)
    job = replace(job, margin=margin)
    done = [_mine_direction(job, catalog, held, direction, places) for direction in settings.directions]
    reports = tuple(report for report, _ in done)
    rows = sum(report.kept for report in reports)
    if rows == 0:
        raise ValueError(_nothing_found(table, reports))
    used = {**settings.to_dict(), "version": job.version, "margin_used": margin}
    schema = mined_schema(table, job.version, provenance.encoder, used)
    fragments = [fragment for _, blocks in done for block in blocks for fragment in block.fragments]
    return MiningReport(
        table=str(table),
        table_version=job.version,
        encoder=provenance.encoder.to_dict(),
        out=str(out),
        out_version=publish(out, schema, fragments),
        out_rows=rows,
        margin=round(margin, 6),
        directions=reports,
        seconds=round(time.perf_counter() - started, 2),
    )


def check_minable(dataset: lance.LanceDataset, table: TableRef, settings: MiningSettings) -> Provenance:
    """The provenance of a table that can be mined; reads no row.

    Raises:
        ValueError: a vector column is missing, the two columns are in different spaces, the filter is invalid, or the
            table has no rows.
    """
    provenance = Provenance.from_schema(dataset.schema, str(table))
    towers = provenance.vector_columns()
    if missing := [c for c in (IMAGE_VECTOR, TEXT_VECTOR) if c not in towers or c not in dataset.schema.names]:
        raise ValueError(
            f"table {table}: has no {missing[0]}; mining needs pictures and captions: embed with --embed both"
        )
    if towers[IMAGE_VECTOR].space != towers[TEXT_VECTOR].space:
        raise ValueError(
            f"table {table}: pictures and captions of encoder {provenance.encoder.name!r} are in different spaces and "
            "cannot be compared; embed with a two-tower model"
        )
    if settings.where is not None:
        check_filter(settings.where, dataset)
    if dataset.count_rows() == 0:
        raise ValueError(f"table {table}: version {dataset.version} holds no rows; nothing can be mined")
    return provenance


def choose_anchors(catalog: Catalog, settings: MiningSettings, table: str) -> NDArray[np.int64]:
    """Places of the anchors, int64, ascending.

    Raises:
        ValueError: no row has both an image vector and a text vector.
    """
    places = catalog.anchors()
    if len(places) == 0:
        among = f" among those where {settings.where}" if settings.where is not None else ""
        raise ValueError(f"table {table}: no row{among} has both vectors; nothing can be mined")
    if settings.anchors is not None and settings.anchors < len(places):
        rng = np.random.default_rng(settings.seed)
        places = np.sort(rng.choice(places, settings.anchors, replace=False))
    return places


def plan_method(settings: MiningSettings, anchors: int, gallery: int) -> str:
    """`exact` or `ann`: as the settings demand, else by the number of pairs."""
    if settings.method != "auto":
        return settings.method
    return "exact" if anchors * gallery <= _EXACT_UP_TO_PAIRS else "ann"


def plan_tasks(anchors: NDArray[np.int64], rows_per_task: int) -> list[NDArray[np.int64]]:
    """The anchors of each task, at most `rows_per_task`."""
    return [anchors[start : start + rows_per_task] for start in range(0, len(anchors), rows_per_task)]


def _read_catalog(job: MiningInput) -> tuple[Catalog, Any]:
    """The catalog, and Ray's reference to it."""
    import ray

    held = ray.remote(catalog_task).options(max_retries=_RETRIES, num_cpus=1).remote(job)
    return ray.get(held), held


def _mine_direction(
    job: MiningInput, catalog: Catalog, held: Any, direction: Direction, places: NDArray[np.int64]
) -> tuple[DirectionReport, list[MinedBlock]]:
    """Mine one direction: make its lists if the search is approximate, then run a task for each block of anchors.

    Raises:
        MiningRecallError: the lists miss the recall that the settings demand.
    """
    import ray

    lists: Any = None
    count, probes, recall = None, None, 1.0
    if plan_method(job.settings, len(places), int(catalog.gallery(direction).sum())) == "ann":
        task: Any = ray.remote(lists_task).options(max_retries=_RETRIES, num_cpus=1, num_returns=2)
        lists, measured = task.remote(job, held, direction, places)
        recall = ray.get(measured)
        found = ray.get(lists)
        count, probes = len(found.centroids), found.probes
        _check_recall(job, direction, recall, probes, count)
    run = ray.remote(mine_block).options(max_retries=_RETRIES, num_cpus=1)
    parts = plan_tasks(places, job.settings.rows_per_task)
    _LOG.info("%s: %d anchors in %d tasks, %s of %s lists", direction, len(places), len(parts), probes, count)
    blocks = ray.get([run.remote(job, held, lists, direction, part) for part in parts])
    return summarise(direction, blocks, lists=count, probes=probes, recall=recall), blocks


def _check_recall(job: MiningInput, direction: Direction, recall: float, probes: int, lists: int) -> None:
    if recall < job.settings.min_recall:
        raise MiningRecallError(
            f"table {job.table}: {probes} of {lists} lists find {recall:.3f} of the exact candidates ({direction}), "
            f"less than min_recall {job.settings.min_recall}; "
            "raise --probes, lower --min-recall, or use --method exact"
        )


def _nothing_found(table: TableRef, reports: tuple[DirectionReport, ...]) -> str:
    dropped: dict[str, int] = {}
    for report in reports:
        for reason, n in report.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + n
    why = ", ".join(f"{reason} {n}" for reason, n in dropped.items() if n) or "there was no candidate"
    return f"table {table}: no negative is left ({why}); lower --margin or --skip, or raise --candidates"
