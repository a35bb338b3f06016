"""The work of a run, given what the table holds: pure functions of the listing and the ledger's coverage.

A shard's id identifies its file, the job and the version of the file. Records settled under the same id are skipped.
Shards of the corpus' files that are settled under other ids are stale: they are of an older version of a file, of a
renamed or deleted file, of a caption whose picture has come, or of the same file read with other options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from encoders.description import Description
from encoders.digest import digest_json
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.naming import Fate, Judge, name_shards, part_of
from pipelines.ingest.sink.staging import Files
from pipelines.ingest.stages.reading import ShardWork
from pipelines.ledger.claims import file_of
from pipelines.ledger.coverage import Coverage
from pipelines.sources import Corpus
from pipelines.store.storage import TableRef
from pipelines.tables.corpora import Corpora


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of a run.

    Attributes:
        shards: number of shards of the corpus.
        work: the shards that are not complete.
        skipped_rows: rows that are already settled.
        stale: ids of the shards whose rows must be removed.
        replaceable: ids of the shards of gone files, whose rows stay unless a row with the same id comes.
        changed: identities of the files of stale shards that are still in the corpus, perhaps under another name.
        gone: identities of the files of stale shards that were deleted from the corpus.
        changed_rows: settled rows of the changed files, including rejected ones.
        gone_rows: settled rows of the deleted files, including rejected ones.
        files: the corpus' files, by which staging finds the rows that new ones replace.
        current: ids of all shards of the corpus.
        corpora: the corpora of the table, this one included.
        registers: whether the table does not know them yet.
    """

    shards: int
    work: list[ShardWork]
    skipped_rows: int
    stale: frozenset[str] = frozenset()
    replaceable: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    changed_rows: int = 0
    gone_rows: int = 0
    files: Files = field(default_factory=Files)
    current: frozenset[str] = frozenset()
    corpora: Corpora = field(default_factory=Corpora)
    registers: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to embed, to remove and to register."""
        return not self.work and not self.stale and not self.registers


def make_plan(
    corpus: Corpus, coverage: Coverage, description: Description, settings: EmbedSettings, registered: Corpora
) -> Plan:
    """Find the shards and records that are still to read, and the stale shards whose rows must be removed.

    Args:
        corpus: the opened corpus.
        coverage: the settled records.
        description: the encoder.
        settings: the settings of the run.
        registered: the corpora of the table.

    Raises:
        ValueError: the corpus is empty, or it is a copy of one that filled the table.
    """
    digest = digest_json(
        [description.card.fingerprint, vars(settings.columns), list(settings.modalities), sorted(settings.needs)]
    )
    named = name_shards(corpus, coverage, settings, digest, registered)
    changed, gone = stale_shards(coverage, named.ids, named.files, named.fate, named.unnamed_fate)
    if not changed and all(shard.rows == 0 for shard in named.shards):
        raise ValueError(f"corpus {settings.corpus}: holds no rows")
    # Rows of gone files stay, but a row that comes again in another file takes the place of the one that is there.
    kept = {} if settings.delete_gone else gone
    gone = gone if settings.delete_gone else {}
    work = remaining(named.work(), coverage)
    stale = frozenset(changed) | frozenset(gone)
    read = {file_of(item.shard_id) for item in work}
    return Plan(
        shards=len(named.shards),
        work=work,
        skipped_rows=sum(map(coverage.rows, named.ids)),
        stale=stale,
        changed=frozenset(changed.values()),
        gone=frozenset(gone.values()),
        changed_rows=sum(map(coverage.rows, changed)),
        gone_rows=sum(map(coverage.rows, gone)),
        replaceable=frozenset(kept),
        files=Files(uris={name: named.files[name] for name in read}, bring_successors=bool(stale or kept)),
        current=frozenset(named.ids),
        corpora=named.corpora,
        registers=named.corpora != registered,
    )


def remaining(work: Iterable[ShardWork], coverage: Coverage) -> list[ShardWork]:
    """The shards that are still incomplete, with the ranges of their records that are settled now."""
    return [
        replace(item, done=tuple(coverage.ranges(item.shard_id)))
        for item in work
        if not coverage.is_complete(item.shard_id, item.shard.rows)
    ]


def stale_shards(
    coverage: Coverage,
    current: Iterable[str],
    files: Mapping[str, str],
    fate: Judge,
    unnamed: Fate = Fate.KEPT,
) -> tuple[dict[str, str], dict[str, str]]:
    """Settled shards that no longer belong to the corpus.

    Args:
        coverage: the settled records.
        current: ids of the corpus' shards.
        files: file id → identity of the corpus' files.
        fate: what became of a file, given its identity and whether the corpus has the same version of its part.
        unnamed: what became of files whose identity is not known.

    Returns:
        Two maps, shard id → the file's identity: the shards of changed and renamed files, and those of deleted files.
        Shards of other corpora in the same table are in neither.
    """
    ids = frozenset(current)
    parts = {part_of(shard) for shard in ids}
    changed: dict[str, str] = {}
    gone: dict[str, str] = {}
    for shard in coverage:
        if shard in ids:
            continue
        name = file_of(shard)
        identity = files.get(name) or coverage.files.get(name)
        is_here = part_of(shard) in parts
        if identity is not None:
            became = fate(identity, is_here=is_here)
        else:
            became = Fate.CHANGED if unnamed is Fate.GONE and is_here else unnamed
        if became is not Fate.KEPT:
            (changed if became is Fate.CHANGED else gone)[shard] = identity or name
    return changed, gone


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
