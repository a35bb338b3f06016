"""Comparison within k-means cells, for tables too large to compare all pairs; each Ray task takes some cells.

Near-duplicates almost always share their nearest centroid (Abbas et al., "SemDeDup", 2023, which compares this way
too). A pair on two sides of a border is missed. The share of missed pairs is measured on a sample, against all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from encoders.protocol import Modality
from pipelines.curate.deduplication.contents import Contents
from pipelines.curate.deduplication.leaders import KEPT, Leaders, find_leaders
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_at
from pipelines.vectors.lists import nearest_lists, plan_sample, train_centroids
from pipelines.vectors.scan import scan_blocks, take_vectors

if TYPE_CHECKING:
    import lance

_CONTENTS_PER_CELL = 1_000
_CONTENTS_PER_TASK = 50_000
_RETRIES = 3


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a task reads: plain data.

    Attributes:
        ref: the table.
        version: version of the table.
        modalities: the modalities that are compared.
    """

    ref: TableRef
    version: int
    modalities: tuple[Modality, ...]

    def open(self) -> lance.LanceDataset:
        """The table at its version."""
        return open_at(self.ref, self.version)


def plan_cells(contents: int) -> int:
    """Number of cells for a number of contents: about 1,000 contents per cell."""
    return max(1, round(contents / _CONTENTS_PER_CELL))


def plan_tasks(sizes: Sequence[int], most: int = _CONTENTS_PER_TASK) -> list[list[int]]:
    """The cells of each task, in order; a cell larger than a task gets a task alone.

    >>> plan_tasks([3, 4, 9, 1, 1], most=7)
    [[0, 1], [2], [3, 4]]
    """
    tasks: list[list[int]] = []
    held = most
    for cell, size in enumerate(sizes):
        if held + size > most:
            tasks.append([])
            held = 0
        tasks[-1].append(cell)
        held += size
    return tasks


def leaders_by_cells(table: Table, contents: Contents, threshold: float, seed: int) -> Leaders:
    """`find_leaders` over all contents, each compared only with the contents of its cell."""
    import ray

    member = _assign(table, contents, seed)
    order = np.argsort(member, kind="stable")
    cells = np.split(order, np.searchsorted(member[order], np.arange(1, member.max(initial=0) + 1)))
    task: Any = ray.remote(leaders_of_cells).options(max_retries=_RETRIES, num_cpus=1)
    tasks = plan_tasks([len(cell) for cell in cells])
    offsets = [[contents.offset[contents.first[cells[c]]] for c in chosen] for chosen in tasks]
    found = ray.get([task.remote(table, part, threshold) for part in offsets])
    leader = np.full(len(contents), KEPT, np.int64)
    score = np.ones(len(contents), np.float32)
    for chosen, results in zip(tasks, found, strict=True):
        for cell, result in zip(chosen, results, strict=True):
            places = cells[cell]
            leader[places] = np.where(result.leader == KEPT, KEPT, places[result.leader])
            score[places] = result.score
    return Leaders(leader, score)


def leaders_of_cells(table: Table, cells: Sequence[NDArray[np.int64]], threshold: float) -> list[Leaders]:
    """Ray task: the leaders within each cell; a cell is given as the offsets of its contents' first rows."""
    dataset = table.open()
    return [find_leaders(take_vectors(dataset, cell, table.modalities), threshold) for cell in cells]


def share_missed(table: Table, contents: Contents, leaders: Leaders, threshold: float, sample: int, seed: int) -> float:
    """The share of a sample of kept contents that resemble an earlier kept content, found in one pass over all rows."""
    kept = np.flatnonzero(leaders.leader == KEPT)
    if len(kept) < 2:
        return 0.0
    chosen = np.sort(np.random.default_rng(seed).choice(kept, min(sample, len(kept)), replace=False))
    places = contents.first[chosen]
    queries = take_vectors(table.open(), contents.offset[places], table.modalities)
    is_kept = np.zeros(len(contents.offset), bool)
    is_kept[contents.first[kept]] = True
    missed = np.zeros(len(chosen), bool)
    for block in scan_blocks(table.open(), None, modalities=table.modalities):
        rows = np.flatnonzero(is_kept[block.start : block.start + len(block)])
        if not len(rows):
            continue
        same = np.full((len(chosen), len(rows)), np.inf, np.float32)
        for modality, own in zip(table.modalities, queries, strict=True):
            same = np.minimum(same, own @ block.vectors[modality][rows].T)
        before = (rows + block.start)[None, :] < places[:, None]
        missed |= ((same >= threshold) & before).any(axis=1)
    return float(missed.mean())


def _assign(table: Table, contents: Contents, seed: int) -> NDArray[np.int32]:
    """The cell of each content, int32 (contents,)."""
    count = plan_cells(len(contents))
    rng = np.random.default_rng(seed)
    modality = table.modalities[0]
    dataset = table.open()
    dim = dataset.schema.field(f"{modality}_vector").type.list_size
    trained = np.sort(rng.choice(len(contents), plan_sample(count, len(contents), dim), replace=False))
    (vectors,) = take_vectors(dataset, contents.offset[contents.first[trained]], [modality])
    centroids = train_centroids(vectors, count, seed)
    member = np.zeros(len(contents), np.int32)
    number = np.full(len(contents.offset), KEPT, np.int64)
    number[contents.first] = np.arange(len(contents))
    for block in scan_blocks(dataset, None, modalities=[modality]):
        numbers = number[block.start : block.start + len(block)]
        rows = np.flatnonzero(numbers != KEPT)
        if len(rows):
            member[numbers[rows]] = nearest_lists(block.vectors[modality][rows], centroids, 1)[:, 0]
    return member
