"""The work of the Ray tasks of mining: each opens the table at its version itself, and returns plain data.

A lost task is run again with the same arguments. Fragments that a lost attempt leaves behind belong to no version and
are never read; only the fragments that a task returns are committed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.protocol import Modality
from pipelines.rows.contract import ITEM_ID, ROW_ID
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_at
from pipelines.train.mining.catalog import Catalog, read_catalog
from pipelines.train.mining.histograms import count_scores
from pipelines.train.mining.judging import DROPPED, Verdict, choose, judge_by_rank, judge_by_score, says_the_same
from pipelines.train.mining.mined import MINED_SCHEMA, stage
from pipelines.train.mining.mining_settings import Direction, MiningSettings
from pipelines.vectors.exact import SAMPLE, Check, build_lists, resembling, search_all, search_lists
from pipelines.vectors.lists import Lists, plan_lists, plan_sample, train_centroids
from pipelines.vectors.scan import Block, dimension, scan_blocks, take_vectors

if TYPE_CHECKING:
    import lance


@dataclass(frozen=True, kw_only=True)
class MiningInput:
    """What every task needs: plain data.

    Attributes:
        table: the table to mine.
        version: version of that table.
        out: the mined table, to which fragments are written.
        settings: settings of the mining run.
        margin: the margin to use, calibrated if the settings say `auto`.
    """

    table: TableRef
    version: int
    out: TableRef
    settings: MiningSettings
    margin: float = 0.0

    def open(self) -> lance.LanceDataset:
        """The table at its version."""
        return open_at(self.table, self.version)

    def blocks(self, *modalities: Modality) -> Iterator[Block]:
        """Blocks of the table's vectors, of one modality or both."""
        return scan_blocks(self.open(), self.settings.where, modalities=modalities)


@dataclass(frozen=True, kw_only=True)
class MinedBlock:
    """The results of a task for its anchors.

    Attributes:
        fragments: metadata of the written fragments, as JSON.
        anchors: number of anchors.
        served: number of anchors that got a negative.
        kept: number of negatives.
        verdicts: number of dropped candidates by reason.
        positives: fine histogram of the anchors' own scores.
        negatives: fine histogram of the negatives' scores.
    """

    fragments: tuple[str, ...]
    anchors: int
    served: int
    kept: int
    verdicts: dict[str, int]
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]


def query_and_gallery(direction: Direction) -> tuple[Modality, Modality]:
    """(modality of the anchors, modality of the candidates)."""
    return ("text", "image") if direction == "text_to_image" else ("image", "text")


def catalog_task(job: MiningInput) -> Catalog:
    """Read the table's catalog."""
    return read_catalog(job.open(), job.settings.where)


def lists_task(
    job: MiningInput, catalog: Catalog, direction: Direction, anchors: NDArray[np.int64]
) -> tuple[Lists, float]:
    """Lists over the gallery of a direction, with the probes that reach the target recall; and the recall measured."""
    query, target = query_and_gallery(direction)
    settings, dataset = job.settings, job.open()
    rng = np.random.default_rng(settings.seed)
    gallery = catalog.gallery(direction)
    rows = np.flatnonzero(gallery)
    count = plan_lists(len(rows))
    trained = np.sort(rng.choice(rows, plan_sample(count, len(rows), dimension(dataset)), replace=False))
    (sample,) = take_vectors(dataset, catalog.offset[trained], [target])
    chosen = np.sort(rng.permutation(anchors)[: 2 * SAMPLE])
    (queries,) = take_vectors(dataset, catalog.offset[chosen], [query])
    goal = max(settings.target_recall, settings.min_recall)
    return build_lists(
        job.blocks(target),
        target,
        gallery,
        train_centroids(sample, count, settings.seed),
        queries,
        settings.depth,
        goal=goal,
        probes=settings.probes,
    )


def mine_block(
    job: MiningInput, catalog: Catalog, lists: Lists | None, direction: Direction, anchors: NDArray[np.int64]
) -> MinedBlock:
    """Mine the negatives of some anchors and write them as fragments.

    Args:
        job: the input that all tasks share.
        catalog: the catalog of the table.
        lists: the lists for approximate search; None searches exactly.
        direction: the direction to mine.
        anchors: int64 (a,), places of the anchors, ascending.
    """
    query, target = query_and_gallery(direction)
    image, text = take_vectors(job.open(), catalog.offset[anchors])
    queries = text if query == "text" else image
    if lists is None:
        found = search_all(job.blocks(target), target, catalog.gallery(direction), queries, job.settings.depth)
    else:
        found = search_lists(job.blocks(target), target, lists, queries, job.settings.depth)
    scores, places = found
    positives = catalog.positive[anchors]
    verdicts = judge_by_rank(catalog, anchors, places, job.settings.skip)
    _judge_resemblance(job, catalog, direction, anchors, places, verdicts, image, text)
    judge_by_score(verdicts, scores, positives, job.margin)
    chosen = choose(verdicts, job.settings.negatives)
    rows = _rows(job, catalog, direction, anchors, places, scores, chosen)
    return MinedBlock(
        fragments=stage(job.out, rows),
        anchors=len(anchors),
        served=int(chosen.any(axis=1).sum()),
        kept=int(chosen.sum()),
        verdicts={v.name.lower(): int((verdicts == v).sum()) for v in DROPPED},
        positives=count_scores(positives),
        negatives=count_scores(scores[chosen]),
    )


def _judge_resemblance(
    job: MiningInput,
    catalog: Catalog,
    direction: Direction,
    anchors: NDArray[np.int64],
    places: NDArray[np.int64],
    verdicts: NDArray[np.int8],
    image: NDArray[np.float32],
    text: NDArray[np.float32],
) -> None:
    """Mark, in place, candidates whose picture or caption is a near-duplicate of the anchor's own."""
    settings = job.settings
    at = np.nonzero(verdicts == Verdict.GOOD)
    who, which = at[0].astype(np.int32), places[at].astype(np.int32)
    # A picture has the captions of all its rows.
    if direction == "text_to_image":
        entry, rows = catalog.rows_of_pictures(which)
    else:
        entry, rows = np.arange(len(which), dtype=np.int32), which
    pictures = Check(modality="image", own=image, anchor=who, place=which, threshold=settings.near_duplicate_image)
    captions = Check(modality="text", own=text, anchor=who[entry], place=rows, threshold=settings.near_duplicate_text)
    same_picture, same_text = resembling(job.blocks("image", "text"), [pictures, captions])
    same_caption = says_the_same(catalog, direction, anchors[who], which)
    same_caption[entry[same_text]] = True
    found = np.where(same_caption, Verdict.NEAR_DUPLICATE_CAPTION, Verdict.GOOD)
    verdicts[at] = np.where(same_picture, Verdict.NEAR_DUPLICATE_IMAGE, found).astype(np.int8)


def _rows(
    job: MiningInput,
    catalog: Catalog,
    direction: Direction,
    anchors: NDArray[np.int64],
    places: NDArray[np.int64],
    scores: NDArray[np.float32],
    chosen: NDArray[np.bool_],
) -> pa.Table:
    """The negatives as rows of `MINED_SCHEMA`; ids are read only for these rows."""
    who, rank = np.nonzero(chosen)
    if len(who) == 0:
        return MINED_SCHEMA.empty_table()
    negatives = places[chosen]
    needed, where = np.unique(np.concatenate([anchors[who], negatives]), return_inverse=True)
    ids = job.open().take(catalog.offset[needed].tolist(), columns=[ROW_ID, ITEM_ID])
    own, others = pa.array(where[: len(who)]), pa.array(where[len(who) :])
    return pa.table(
        {
            ROW_ID: ids[ROW_ID].take(own),
            "direction": pa.array([direction] * len(who), pa.string()),
            "negative_row_id": ids[ROW_ID].take(others),
            "negative_item_id": ids[ITEM_ID].take(others),
            "score": pa.array(scores[chosen], pa.float32()),
            "positive_score": pa.array(catalog.positive[anchors][who], pa.float32()),
            "rank": pa.array(rank.astype(np.int32), pa.int32()),
        }
    )
