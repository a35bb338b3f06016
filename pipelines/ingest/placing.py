"""Which corpus of a table the files of a run belong to: the same as before, one that has moved, or a new one.

Pure, except for what `World` asks of disks and stores.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipelines.ingest.world import World
from pipelines.ledger.coverage import Coverage
from pipelines.sources.patterns import Pattern
from pipelines.store.storage import is_remote
from pipelines.tables.corpora import Corpora, RegisteredCorpus, contains, read_corpora
from pipelines.tables.jobs import jobs_of

if TYPE_CHECKING:
    import lance

log = logging.getLogger(__name__)
_IDENTITY = "corpus:"
# Files that are looked for in the folder that a corpus was in, before two folders are taken for different corpora.
_LOOKED_FOR = 100


@dataclass(frozen=True)
class Listed:
    """The files of a run.

    Attributes:
        folder: the folder that their paths start from, as the user named it.
        real: the same folder without links.
        parts: the path of each shard's file, and the second half of the shard's id (its version and part).
    """

    folder: str
    real: str
    parts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Placed:
    """The corpora of a table with those of a run.

    Attributes:
        corpora: the corpora.
        folder: the run's folder, as the registered roots name it.
    """

    corpora: Corpora
    folder: str


def place(
    corpora: Corpora, listed: Listed, name: str | None, settled: Callable[[], set[tuple[str, str]]], world: World
) -> Placed:
    """Find the corpus of a run's files, or register it.

    Args:
        corpora: the corpora of the table.
        listed: the files of the run.
        name: the name that the user gave the corpus.
        settled: gives (identity of the file, second half of the id) of each shard in the table.
        world: what is known about folders.

    Raises:
        ValueError: the files are a copy of a registered corpus, or the name does not fit; nothing was written.
    """
    home = _home(corpora, listed.real, world)
    if name is not None:
        return _place_named(corpora, listed, name, home)
    if home is not None:
        return _at_home(corpora, listed, *home)
    known = settled()
    moved = _moved_from(corpora, listed, known, world)
    if moved is not None:
        log.info("corpus %s has moved from %s to %s", moved.name, moved.root, listed.real)
        return Placed(_rerooted(corpora, moved, listed), listed.real)
    return Placed(corpora.with_entry(_new_entry(corpora, listed, known)), listed.real)


def _home(corpora: Corpora, real: str, world: World) -> tuple[RegisteredCorpus, str] | None:
    """The corpus that contains a folder, and the folder as its root names it."""
    folder, below = real, ""
    while True:
        for entry in corpora.entries:
            if entry.root == folder or world.is_same(entry.root, folder):
                return entry, entry.root + below
        parent, _, last = folder.rpartition("/")
        if not last or parent.endswith(":/") or not parent.strip("/"):
            return next(((e, real) for e in corpora.entries if e.root == "/" and real.startswith("/")), None)
        folder, below = parent, f"/{last}{below}"


def _at_home(corpora: Corpora, listed: Listed, entry: RegisteredCorpus, folder: str) -> Placed:
    """Its corpus is registered. Another path to it is remembered, because rows will name pictures by it."""
    below = folder[len(entry.root) :]
    if listed.folder.endswith(below):
        seen = entry.moved(entry.root, listed.folder[: len(listed.folder) - len(below)])
        if seen != entry:
            corpora = corpora.with_entry(seen, entry)
    return Placed(corpora, folder)


def _place_named(corpora: Corpora, listed: Listed, name: str, home: tuple[RegisteredCorpus, str] | None) -> Placed:
    entry = corpora.named(name)
    within = home[0] if home is not None else None
    if entry is not None and entry is within and home is not None:
        return _at_home(corpora, listed, *home)
    if within is not None and home is not None:
        if entry is not None or within.has_own_name or home[1] != within.root:
            raise ValueError(
                f"corpus_name {name!r}: {listed.folder} is in corpus {within.name!r} of this table already; "
                "omit --corpus-name, or give that name"
            )
        # The same folder, until now without a name: nothing is embedded twice.
        return _at_home(corpora.with_entry(named := replace(within, name=name), within), listed, named, home[1])
    if entry is None:
        return Placed(corpora.with_entry(_named_entry(corpora, listed, name)), listed.real)
    if contains(listed.real, entry.root):
        raise ValueError(
            f"corpus_name {name!r}: its folder is {entry.root}, which is within {listed.folder}; "
            "name the same folder as before, or give another --corpus-name"
        )
    log.info("corpus %s is now in %s, and no longer in %s", name, listed.real, entry.root)
    return Placed(_rerooted(corpora, entry, listed), listed.real)


def _moved_from(corpora: Corpora, listed: Listed, known: set[tuple[str, str]], world: World) -> RegisteredCorpus | None:
    """The registered corpus that has moved to the run's folder; None if these are other files.

    Raises:
        ValueError: the files are copies, and the originals are still there; or two corpora could have moved.
    """
    found = {e: paths for e in corpora.entries if (paths := _shared(e, corpora, listed, known))}
    left = Counter({e: len(found[e]) for e in found if not world.has_any(e.root, _paths(e, corpora, known))})
    if left:
        (best, most), *others = left.most_common()
        if others and others[0][1] == most:
            raise ValueError(
                f"corpus {listed.folder}: its files may be those of corpus {best.name!r} or {others[0][0].name!r}, "
                "which both have moved; give one of these names with --corpus-name"
            )
        return best
    for entry, paths in found.items():
        if world.has_any(entry.root, islice(paths, _LOOKED_FOR)):
            raise ValueError(
                f"corpus {listed.folder}: {len(paths)} of its files are in the table as files of corpus "
                f"{entry.name!r} ({entry.root}), such as {paths[0]!r}; give --corpus-name {entry.name} if it is the "
                "same corpus in another place, or --corpus-name NEW_NAME if its rows shall be added beside those"
            )
    return None


def _shared(entry: RegisteredCorpus, corpora: Corpora, listed: Listed, known: set[tuple[str, str]]) -> list[str]:
    """The paths of the run's files that are in the table, in the same version, as files of another corpus."""
    name = corpora.namer(entry.root)
    return list(dict.fromkeys(path for path, part in listed.parts if (name(path).identity, part) in known))


def _paths(entry: RegisteredCorpus, corpora: Corpora, known: set[tuple[str, str]]) -> Iterable[str]:
    """The paths of a corpus' settled files."""
    for identity, _ in known:
        location = corpora.location(identity)
        if contains(entry.root, location):
            yield location[len(entry.root) + 1 :]


def _rerooted(corpora: Corpora, entry: RegisteredCorpus, listed: Listed) -> Corpora:
    """With a corpus in another folder, and with the corpora within it."""
    for other in corpora.entries:
        if other is not entry and contains(entry.root, other.root):
            corpora = corpora.with_entry(other.moved(listed.real + other.root[len(entry.root) :]), other)
    return corpora.with_entry(entry.moved(listed.real, listed.folder), entry)


def _new_entry(corpora: Corpora, listed: Listed, known: set[tuple[str, str]]) -> RegisteredCorpus:
    """A corpus that has no name of its own.

    Its identity is its root, so that tables from before corpora were registered keep their files. These named files by
    the path that the user gave.
    """
    was_given = any(contains(listed.folder, identity) for identity, _ in known)
    root = listed.folder if was_given else listed.real
    if any(contains(entry.identity_root, root) for entry in corpora.entries):
        # Another corpus was here first, and took its identity along.
        root = _free(_IDENTITY + quote(listed.real, safe=""), {entry.identity_root for entry in corpora.entries})
    name = _free(listed.real, {entry.name for entry in corpora.entries})
    return RegisteredCorpus(name=name, identity_root=root, root=listed.real).moved(listed.real, listed.folder)


def _named_entry(corpora: Corpora, listed: Listed, name: str) -> RegisteredCorpus:
    """A corpus with a name of its own.

    Raises:
        ValueError: it is not a name.
    """
    if not name or not all(character.isalnum() or character in "_-." for character in name):
        there = ", ".join(repr(entry.name) for entry in corpora.entries) or "none"
        raise ValueError(
            f"corpus_name {name!r}: not a corpus of this table (there are: {there}); a new name may hold letters, "
            "digits, '_', '-' and '.'"
        )
    identity = _free(_IDENTITY + name, {entry.identity_root for entry in corpora.entries})
    entry = RegisteredCorpus(name=name, identity_root=identity, root=listed.real)
    return entry.moved(listed.real, listed.folder)


def _free(name: str, taken: set[str]) -> str:
    """The name, or the name with a number if it is taken."""
    return next(text for n in count(1) if (text := name if n == 1 else f"{name}#{n}") not in taken)


def registered_corpora(dataset: lance.LanceDataset | None, coverage: Coverage) -> Corpora:
    """The corpora of a table; none if it does not exist.

    A table from before corpora were registered has only its jobs, each of which names a corpus.
    """
    corpora = read_corpora(dataset)
    if dataset is None:
        return corpora
    files = set(coverage.files.values())
    for root in sorted({_root_of(str(job["corpus"]), files) for job in jobs_of(dataset)}):
        if not any(contains(folder, root) for e in corpora.entries for folder in (e.identity_root, e.root, *e.aliases)):
            real = root if is_remote(root) else os.path.realpath(root)
            entry = RegisteredCorpus(name=_free(real, {e.name for e in corpora.entries}), identity_root=root, root=real)
            corpora = corpora.with_entry(entry.moved(real, root))
    return corpora


def _root_of(corpus: str, files: Container[str]) -> str:
    """The folder of a corpus that need not be there any more.

    Args:
        corpus: the corpus, absolute.
        files: identities of the files that filled the table.
    """
    if corpus in files:
        return Pattern.file(corpus).root
    return Pattern.glob(corpus).root
