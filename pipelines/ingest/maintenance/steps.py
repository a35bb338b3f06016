"""The steps of maintenance on one Lance dataset; `maintain` puts them in order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.ingest.maintenance.versions import Retention, StoredFile, Version, orphaned_files, removable_versions
from pipelines.store.retries import retried
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_dataset

if TYPE_CHECKING:
    import lance


@dataclass(frozen=True, kw_only=True)
class DatasetFolder:
    """The size of a table in its store.

    Attributes:
        files: number of files of all kinds.
        bytes: their total size in bytes.
        fragments: number of fragments of the latest version.
        versions: number of versions that can be opened.
    """

    files: int
    bytes: int
    fragments: int
    versions: int


@dataclass(frozen=True, kw_only=True)
class IndexState:
    """An index, and how many rows it holds and lacks.

    Attributes:
        name: the index's name.
        type: its type, as Lance names it.
        indexed_rows: number of rows in the index.
        unindexed_rows: number of rows that it lacks.
    """

    name: str
    type: str
    indexed_rows: int
    unindexed_rows: int


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What `tidy` removed.

    Attributes:
        versions: number of old versions.
        orphans: number of files that no version named.
        orphan_bytes: size of these files in bytes.
    """

    versions: int
    orphans: int
    orphan_bytes: int


@retried
def folder_of(dataset: lance.LanceDataset) -> DatasetFolder:
    """The numbers of files, bytes, fragments and versions of a dataset."""
    files = _stored_files(dataset)
    return DatasetFolder(
        files=len(files),
        bytes=sum(file.size for file in files),
        fragments=len(dataset.get_fragments()),
        versions=len(dataset.version_refs()),
    )


@retried
def index_states(dataset: lance.LanceDataset) -> tuple[IndexState, ...]:
    """Each index of a dataset. A row without a vector does not count as missing from a vector index."""
    # Otherwise Lance returns all centroids of an index, with a warning.
    os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")
    states = []
    for index in dataset.describe_indices():
        found = dataset.index_statistics(index.name)
        unindexed = found["num_unindexed_rows"]
        if unindexed and index.type_url.endswith("VectorIndexDetails"):
            held = {fragment for segment in index.segments for fragment in segment.fragment_ids}
            (column,) = index.field_names
            unindexed = sum(
                fragment.count_rows(f"{column} IS NOT NULL")
                for fragment in dataset.get_fragments()
                if fragment.fragment_id not in held
            )
        states.append(
            IndexState(
                name=index.name,
                type=index.index_type,
                indexed_rows=found["num_indexed_rows"],
                unindexed_rows=unindexed,
            )
        )
    return tuple(states)


@retried
def refresh_indexes(ref: TableRef) -> None:
    """Let the indexes take in the rows that they lack."""
    dataset = open_dataset(ref)
    # By name: Lance fails on a vector index if none of its new rows has a vector.
    if behind := [index.name for index in index_states(dataset) if index.unindexed_rows]:
        dataset.optimize.optimize_indices(index_names=behind)


@retried
def compact(ref: TableRef, *, dry_run: bool = False, progress: Callable[[], None] = lambda: None) -> int:
    """Merge small files in one commit; return the number of fragments that were (or would be) merged.

    Args:
        ref: the table.
        dry_run: only count.
        progress: called after each task (about a million rows), to keep a lease alive.
    """
    from lance.optimize import Compaction

    dataset = open_dataset(ref)
    plan = Compaction.plan(dataset, {})
    if dry_run or not plan.tasks:
        return sum(len(task.fragments) for task in plan.tasks)
    rewritten = []
    for task in plan.tasks:
        rewritten.append(task.execute(dataset))
        progress()
    return int(Compaction.commit(dataset, rewritten).fragments_removed)


@retried
def tidy(ref: TableRef, retention: Retention, *, recorded: int, dry_run: bool) -> Taken:
    """Remove the versions that retention does not keep, then the files that no version names.

    Args:
        ref: the table.
        retention: the rules.
        recorded: versions after this one stay.
        dry_run: only count.
    """
    now = time.time()
    dataset = open_dataset(ref)
    tagged = {int(tag["version"]) for tag in dataset.tags.list().values()}
    versions = _versions(dataset)
    gone = removable_versions(versions, retention, tagged=tagged, recorded=recorded, now=now)
    if gone and not dry_run:
        dataset.cleanup_old_versions(versions=gone, error_if_tagged_old_versions=False)
    orphans = _orphans(dataset, retention.min_age_s, now)
    if orphans and not dry_run:
        files = ref.storage.filesystem(ref.uri)
        files.rm([f"{ref.uri}/{file.path}" for file in orphans])
    return Taken(versions=len(gone), orphans=len(orphans), orphan_bytes=sum(file.size for file in orphans))


def _versions(dataset: lance.LanceDataset) -> list[Version]:
    found: list[dict[str, Any]] = list(dataset.versions())  # type: ignore[arg-type]
    return [Version(number=version["version"], made=version["timestamp"].timestamp()) for version in found]


def _orphans(dataset: lance.LanceDataset, min_age_s: float, now: float) -> list[StoredFile]:
    """Data files that no version names; empty if the dataset has branches, which may name them."""
    if dataset.branches.list():
        return []
    present = _stored_files(dataset)
    # Read after the listing, so that files committed in between are named.
    named = {path for batch in dataset.tracked_files() for path in batch.column("path").to_pylist()}
    return orphaned_files(present, named, min_age_s, now)


def _stored_files(dataset: lance.LanceDataset) -> list[StoredFile]:
    rows = dataset.all_files().read_all()
    columns = (rows[name].to_pylist() for name in ("path", "size_bytes", "last_modified"))
    return [StoredFile(path=p, size=s, modified=m.timestamp()) for p, s, m in zip(*columns, strict=True)]
