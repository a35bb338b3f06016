"""The work of a run, given what the table holds: pure functions of the listing and the ledger's coverage.

A shard's id identifies its file, the job and the version of the file. Records settled under the same id are skipped.
Shards of the corpus' files that are settled under other ids are stale: they are of an older version of a file, of a
deleted file, or of the same file read with other options.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from encoders.description import Description
from encoders.digest import digest_json
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.identity import file_id, shard_id
from pipelines.ingest.sink.staging import Files
from pipelines.ingest.stages.reading import ShardWork
from pipelines.ledger.claims import file_of
from pipelines.ledger.coverage import Coverage
from pipelines.sources.base import Source
from pipelines.sources.listing import GLOB_CHARACTERS
from pipelines.store.storage import TableRef, absolute


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of a run.

    Attributes:
        shards: number of shards of the corpus.
        work: the shards that are not complete.
        skipped_rows: rows that are already settled.
        stale: ids of the shards whose rows must be removed.
        changed: URIs of the files of stale shards that are still in the corpus.
        gone: URIs of the files of stale shards that were deleted from the corpus.
        changed_rows: settled rows of the changed files, including rejected ones.
        gone_rows: settled rows of the deleted files, including rejected ones.
        files: the corpus' files, by which staging finds the rows that new ones replace.
        current: ids of all shards of the corpus.
    """

    shards: int
    work: list[ShardWork]
    skipped_rows: int
    stale: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    changed_rows: int = 0
    gone_rows: int = 0
    files: Files = field(default_factory=Files)
    current: frozenset[str] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to embed and nothing to remove."""
        return not self.work and not self.stale


def make_plan(source: Source, coverage: Coverage, description: Description, settings: EmbedSettings) -> Plan:
    """Find the shards and records that are still to read, and the stale shards whose rows must be removed.

    Raises:
        ValueError: the corpus is empty.
    """
    shards = source.shards()
    if not shards:
        raise ValueError(f"corpus {settings.corpus}: holds no rows")
    digest = digest_json(
        [description.card.fingerprint, vars(settings.columns), list(settings.modalities), sorted(settings.needs)]
    )
    ids = [shard_id(shard, digest) for shard in shards]
    uris = {file_id(shard, digest): shard.uri for shard in shards}
    changed, gone = stale_shards(coverage, frozenset(ids), uris, settings.corpus)
    if not settings.delete_gone:
        gone = {}
    both = zip(shards, ids, strict=True)
    work = remaining((ShardWork(shard=shard, shard_id=identity) for shard, identity in both), coverage)
    stale = frozenset(changed) | frozenset(gone)
    names = {file_of(item.shard_id) for item in work}
    return Plan(
        shards=len(shards),
        work=work,
        skipped_rows=sum(coverage.rows(identity) for identity in ids),
        stale=stale,
        changed=frozenset(changed.values()),
        gone=frozenset(gone.values()),
        changed_rows=sum(map(coverage.rows, changed)),
        gone_rows=sum(map(coverage.rows, gone)),
        files=Files(uris={name: uris[name] for name in names}, bring_successors=bool(stale)),
        current=frozenset(ids),
    )


def remaining(work: Iterable[ShardWork], coverage: Coverage) -> list[ShardWork]:
    """The shards that are still incomplete, with the ranges of their records that are settled now."""
    return [
        replace(item, done=tuple(coverage.ranges(item.shard_id)))
        for item in work
        if not coverage.is_complete(item.shard_id, item.shard.rows)
    ]


def stale_shards(
    coverage: Coverage, current: frozenset[str], uris: dict[str, str], corpus: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Settled shards that no longer belong to the corpus.

    Args:
        coverage: the settled records.
        current: ids of the corpus' shards.
        uris: file id → URI of the corpus' files.
        corpus: the corpus, as the user named it.

    Returns:
        Two maps, shard id → URI: the shards of changed files and the shards of deleted files. Shards of other corpora
        in the same table are in neither, nor are shards whose file was not recorded.
    """
    listed = set(uris.values())
    root = absolute(corpus)
    changed: dict[str, str] = {}
    gone: dict[str, str] = {}
    for shard in coverage:
        if shard in current:
            continue
        name = file_of(shard)
        uri = uris.get(name) or coverage.files.get(name)
        if uri in listed:
            changed[shard] = uri
        elif uri is not None and _is_inside(uri, root):
            gone[shard] = uri
    return changed, gone


def _is_inside(uri: str, root: str) -> bool:
    """Whether a file of this URI would belong to the corpus."""
    if uri == root or uri.startswith(root + "/"):
        return True
    return any(c in root for c in GLOB_CHARACTERS) and fnmatch.fnmatchcase(uri, root)


def check_deletions(plan: Plan, coverage: Coverage, settings: EmbedSettings, table: TableRef) -> None:
    """Refuse to remove many rows, because a disk may not be mounted or a listing may be incomplete.

    Raises:
        ValueError: the deleted files gave a larger share of the table's rows than `max_delete_rate`.
    """
    if not plan.gone:
        return
    rows = sum(coverage.rows(shard) for shard in coverage)
    if plan.gone_rows > settings.max_delete_rate * rows:
        raise ValueError(
            f"max_delete_rate {settings.max_delete_rate:g}: {len(plan.gone)} files are gone that gave "
            f"{plan.gone_rows} of the {rows} rows of table {table}; "
            "check that the corpus is complete, then give --max-delete-rate 1 or --keep-deleted"
        )


def expected_rows(todo: Iterable[ShardWork]) -> int | None:
    """Number of records still to read; None if the listing does not know the records of every shard."""
    total = 0
    for work in todo:
        if work.shard.rows is None:
            return None
        total += work.shard.rows - _settled(work.done)
    return total


def _settled(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)
