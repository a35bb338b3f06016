"""What a run has to do, given what the table holds: pure functions of the listing and the ledger's coverage.

A shard's id says which file it is of, for which job, and which version of it. What is settled under the same ids is
skipped; what is settled of the corpus' files under other ids is stale: an older version of a file, a file that is gone,
or the same file read in another way.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from encoders.description import Description
from encoders.digest import digest_json
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.identity import file_id, shard_id
from pipelines.ingest.sink.claims import Coverage, file_of
from pipelines.ingest.sink.staging import Files
from pipelines.ingest.stages.reading import ShardWork
from pipelines.sources.base import Source
from pipelines.sources.listing import GLOB_CHARACTERS
from pipelines.store.storage import TableRef, absolute


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is going to do.

    Attributes:
        shards: how many shards the corpus has.
        work: those that are not complete.
        skipped_rows: rows that are settled already.
        stale: shards whose rows must leave.
        changed: files of stale shards that are still in the corpus.
        gone: files of stale shards that are not.
        changed_rows: settled rows of the former, rejected ones too.
        gone_rows: settled rows of the latter.
        files: what staging tasks must know.
        current: ids of the corpus' shards.
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
        """Whether the table mirrors the corpus already."""
        return not self.work and not self.stale


def make_plan(source: Source, coverage: Coverage, description: Description, settings: EmbedSettings) -> Plan:
    """Which shards are still to read, which of their records, and whose rows must leave.

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
    """What is left of some work, now that more of it is settled."""
    return [
        replace(item, done=tuple(coverage.ranges(item.shard_id)))
        for item in work
        if not coverage.is_complete(item.shard_id, item.shard.rows)
    ]


def stale_shards(
    coverage: Coverage, current: frozenset[str], uris: dict[str, str], corpus: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Settled shards that are not the corpus' any more.

    Args:
        coverage: what is settled.
        current: ids of the corpus' shards.
        uris: file id → uri of the corpus' files.
        corpus: as the user named it.

    Returns:
        Of files that are there in another version, and of files that are gone: shard id → uri. Shards of other
        corpora in the same table, and those whose file nobody wrote down, are neither.
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
    """Whether a file would be of a corpus, if it were there."""
    if uri == root or uri.startswith(root + "/"):
        return True
    return any(c in root for c in GLOB_CHARACTERS) and fnmatch.fnmatchcase(uri, root)


def check_deletions(plan: Plan, coverage: Coverage, settings: EmbedSettings, table: TableRef) -> None:
    """Refuse to empty a table because a disk was not mounted, or a listing came short.

    Raises:
        ValueError: files are gone that gave more of the table's rows than allowed.
    """
    if not plan.gone:
        return
    rows = sum(coverage.rows(shard) for shard in coverage)
    if plan.gone_rows > settings.max_delete_rate * rows:
        raise ValueError(
            f"max_delete_rate {settings.max_delete_rate:g}: {len(plan.gone)} files are gone that gave "
            f"{plan.gone_rows} of the {rows} rows of table {table}; "
            "look at the corpus, then give --max-delete-rate 1, or --keep-deleted"
        )


def expected_rows(todo: Iterable[ShardWork]) -> int | None:
    """Records still to do where the listing knows them, else None."""
    total = 0
    for work in todo:
        if work.shard.rows is None:
            return None
        total += work.shard.rows - _settled(work.done)
    return total


def _settled(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)
