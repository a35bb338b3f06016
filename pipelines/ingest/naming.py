"""The shards of a run with their identities in a table, and what became of files that the table knows."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import Protocol

from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.identity import file_id, part_id
from pipelines.ingest.moving import Listed
from pipelines.ingest.placing import Placed, place
from pipelines.ingest.stages.reading import ShardWork
from pipelines.ingest.world import Folders
from pipelines.ledger.claims import file_of
from pipelines.ledger.coverage import Coverage
from pipelines.sources import Corpus
from pipelines.sources.base import CorpusShard
from pipelines.store.storage import is_remote
from pipelines.tables.corpora import Corpora, FileName, RegisteredCorpus, contains


class Fate(Enum):
    """What became of a file that the table knows."""

    KEPT = auto()
    CHANGED = auto()
    GONE = auto()


class Judge(Protocol):
    """Says what became of a file; see `NamedShards.fate`."""

    def __call__(self, identity: str, *, is_here: bool) -> Fate:
        """What became of a file."""
        ...


@dataclass(frozen=True)
class NamedShards:
    """The shards of a corpus, and the names of their files within a table.

    Attributes:
        corpus: the opened corpus.
        shards: its shards.
        corpora: the corpora of the table, this one included.
        folder: the corpus' folder, as the registered roots name it.
        job_digest: digest of the encoder, the column roles and the modalities.
    """

    corpus: Corpus
    shards: Sequence[CorpusShard]
    corpora: Corpora
    folder: str
    job_digest: str

    @cached_property
    def ids(self) -> list[str]:
        """The id of each shard."""
        files = self._file_ids
        return [f"{files[shard.uri]}-{part_id(shard)}" for shard in self.shards]

    def work(self) -> list[ShardWork]:
        """All shards, as work that is still to do."""
        return [
            ShardWork(shard=shard, shard_id=identity, path=self._names[shard.uri].row_path)
            for shard, identity in zip(self.shards, self.ids, strict=True)
        ]

    @cached_property
    def files(self) -> dict[str, str]:
        """File id → identity of the files that the shards read."""
        return {file: self._names[uri].identity for uri, file in self._file_ids.items()}

    def fate(self, identity: str, *, is_here: bool) -> Fate:
        """What became of a file that the table knows.

        Args:
            identity: the file's identity.
            is_here: whether the corpus has the same version of its part. Then a file that is gone was renamed.
        """
        if identity in self._identities:
            return Fate.CHANGED
        location = self.corpora.location(identity)
        if not contains(self.folder, location):
            return Fate.CHANGED if is_here and self._has_vanished(location) else Fate.KEPT
        path = location[len(self.folder.rstrip("/")) + 1 :]
        if path in self._paths:  # It belongs to another corpus now, by whose name it is known.
            return Fate.CHANGED
        if self.corpus.listing.misses(path):
            return Fate.CHANGED if is_here else Fate.GONE
        return Fate.CHANGED if is_here and self._has_vanished(location) else Fate.KEPT

    def _has_vanished(self, location: str) -> bool:
        """Whether a file on disk is not there, and the folder of its corpus is. A disk may not be mounted."""
        home = self.corpora.home(location)
        if home is None or is_remote(home.root) or not Path(home.root).is_dir():
            return False
        return not os.path.lexists(location)

    @property
    def unnamed_fate(self) -> Fate:
        """What became of a file that the table has rows of, and whose name was lost with the ledger.

        If the run lists everything in the only corpus of the table, the file is gone. Otherwise nobody can tell.
        """
        everything = not self.corpus.listing.pattern.segments
        is_only = [entry.root for entry in self.corpora.entries] == [self.folder]
        return Fate.GONE if everything and is_only else Fate.KEPT

    @cached_property
    def _names(self) -> dict[str, FileName]:
        """URI → name of each file that gives records or is consumed by those of another."""
        name, root = self.corpora.namer(self.folder), len(self.corpus.listing.root.rstrip("/")) + 1
        consumed = (uri for shard in self.shards for uri in shard.consumes)
        return {uri: name(uri[root:]) for uri in itertools.chain((shard.uri for shard in self.shards), consumed)}

    @cached_property
    def _file_ids(self) -> dict[str, str]:
        """URI → id of each of these files."""
        return {uri: file_id(name.identity, self.job_digest) for uri, name in self._names.items()}

    @cached_property
    def _identities(self) -> frozenset[str]:
        return frozenset(name.identity for name in self._names.values())

    @cached_property
    def _paths(self) -> frozenset[str]:
        return frozenset(self.corpus.path_of(uri) for uri in self._names)


def name_shards(
    corpus: Corpus, coverage: Coverage, settings: EmbedSettings, job_digest: str, registered: Corpora
) -> NamedShards:
    """Find the corpus of a table that the run's files belong to, and name its shards.

    Raises:
        ValueError: the files are a copy of a corpus that filled the table, or its name does not fit.
    """
    shards = corpus.shards()
    folder = corpus.listing.root
    listed = Listed(
        folder=folder,
        real=folder if is_remote(folder) else os.path.realpath(folder),
        find_parts=lambda: [(corpus.path_of(shard.uri), part_id(shard)) for shard in shards],
    )
    _recover_names(coverage, registered, listed, job_digest)
    registered = _with_implied(registered, coverage, listed)
    placed: Placed = place(
        registered,
        listed,
        settings.corpus_name,
        lambda: {(uri, part_of(shard)) for shard in coverage if (uri := coverage.files.get(file_of(shard)))},
        Folders(settings.corpus_storage),
    )
    return NamedShards(corpus, shards, placed.corpora, placed.folder, job_digest)


def _with_implied(registered: Corpora, coverage: Coverage, listed: Listed) -> Corpora:
    """The corpora of a table, with those whose record was lost when an older version of the table was restored.

    The run's files tell their roots: a file that the table knows in the same version under a longer path.
    """
    by_part: dict[str, list[str]] = {}
    roots = [entry.identity_root for entry in registered.entries]
    for shard in coverage:
        identity = coverage.files.get(file_of(shard))
        if identity is not None and not any(contains(root, identity) for root in roots):
            by_part.setdefault(part_of(shard), []).append(identity)
    implied = {
        identity.removesuffix(f"/{path}")
        for path, part in (listed.parts if by_part else ())
        for identity in by_part.get(part, ())
        if identity.endswith(f"/{path}")
    }
    for root in sorted(implied, key=len):
        if not any(contains(entry.identity_root, root) for entry in registered.entries):
            registered = registered.with_entry(RegisteredCorpus(name=root, identity_root=root, root=root))
    return registered


def _recover_names(coverage: Coverage, registered: Corpora, listed: Listed, job_digest: str) -> None:
    """Name the listed files that the table has rows of, if their names were lost with the ledger.

    Their ids are recomputed, as files of each corpus of the table.
    """
    unnamed = {file_of(shard) for shard in coverage} - coverage.files.keys()
    if not unnamed:
        return
    for entry in registered.entries:
        name = registered.namer(entry.root)
        for path in dict.fromkeys(path for path, _ in listed.parts):
            identity = name(path).identity
            if (found := file_id(identity, job_digest)) in unnamed:
                coverage.files[found] = identity


def part_of(shard: str) -> str:
    """The second half of a shard's id: the file's version and the part. It does not depend on the file's name.

    >>> part_of("f00d-beef")
    'beef'
    """
    return shard.partition("-")[2]
