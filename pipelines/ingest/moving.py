"""Files of a run that a table knows as those of a corpus in another folder: was that corpus moved, or copied?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from pipelines.ingest.world import World
from pipelines.store.storage import is_remote
from pipelines.tables.corpora import Corpora, RegisteredCorpus, contains

# Files that are looked for in the folder that a corpus was in, before two folders are taken for different corpora.
_LOOKED_FOR = 100

# The identity of each file in the table, with the second half of the id of each of its shards.
Settled = set[tuple[str, str]]


@dataclass(frozen=True)
class Listed:
    """The files of a run.

    Attributes:
        folder: the folder that their paths start from, as the user named it.
        real: the same folder without links.
        find_parts: gives the path of each shard's file, and the second half of the shard's id (its version and part).
    """

    folder: str
    real: str
    find_parts: Callable[[], Sequence[tuple[str, str]]]

    @cached_property
    def parts(self) -> Sequence[tuple[str, str]]:
        """What `find_parts` gives. Only a folder that is not registered needs it."""
        return self.find_parts()


@dataclass(frozen=True)
class Match:
    """Files of a run that are in the table, in the same version, as files of a corpus in another folder.

    Attributes:
        entry: the corpus.
        root: the folder that it would be in now.
        paths: the files, relative to the corpus' root.
        is_most: whether they are half of the run's files, or half of the corpus' files in the table.
    """

    entry: RegisteredCorpus
    root: str
    paths: tuple[str, ...]
    is_most: bool = False


def moved_corpus(corpora: Corpora, listed: Listed, known: Settled, world: World) -> Match | None:
    """The corpus that was moved and brought most files of this run; None if there is none.

    Raises:
        ValueError: two corpora were moved, and the files may be those of either.
    """
    left = [m for m in matches(corpora, listed, known) if m.is_most and _is_left(m.entry, corpora, known, world)]
    best = max(left, key=lambda match: len(match.paths), default=None)
    for other in left:
        if best and other is not best and (other.root, len(other.paths)) == (best.root, len(best.paths)):
            raise ValueError(
                f"corpus {listed.folder}: its files may be those of corpus {best.entry.name!r} or "
                f"{other.entry.name!r}, which both have moved; give one of these names with --corpus-name"
            )
    return best


def refuse_copy(corpora: Corpora, listed: Listed, known: Settled, world: World) -> None:
    """Refuse files whose originals filled the table and are still there, or of which only a few were moved.

    On a disk, equal versions mean a copy, because they hold the time of the last change. In a store they mean equal
    content, and any two corpora may share a file.

    Raises:
        ValueError: names the corpus, a file and the remedy.
    """
    for match in matches(corpora, listed, known):
        entry, paths = match.entry, match.paths
        if not match.is_most and is_remote(listed.real):
            continue
        if world.has_any(entry.root, islice(paths, _LOOKED_FOR)) or _is_left(entry, corpora, known, world):
            raise ValueError(
                f"corpus {listed.folder}: {len(paths)} of its files are in the table as files of corpus "
                f"{entry.name!r} in {entry.root}, such as {paths[0]!r}; give --corpus-name {entry.name} if it is the "
                "same corpus in another place, or --corpus-name NEW_NAME if its rows shall be added beside those"
            )


def _is_left(entry: RegisteredCorpus, corpora: Corpora, known: Settled, world: World) -> bool:
    """Whether a corpus' folder has none of its files any more."""
    return not world.has_any(entry.root, _paths(entry, corpora, known))


def rerooted(corpora: Corpora, entry: RegisteredCorpus, root: str) -> Corpora:
    """With a corpus in another folder, and with the corpora within it."""
    for other in corpora.entries:
        if other is not entry and contains(entry.root, other.root):
            corpora = corpora.with_entry(other.moved(root + other.root[len(entry.root) :]), other)
    return corpora.with_entry(entry.moved(root), entry)


def matches(corpora: Corpora, listed: Listed, known: Settled) -> list[Match]:
    """For each corpus, the files of the run that the table knows as its own. Files that lie in a corpus are no such."""
    parts = {part for _, part in known}
    # Few files of a new corpus have the version of a known one.
    candidates = [(path, part) for path, part in listed.parts if part in parts]
    roots = [entry.root for entry in corpora.entries if contains(listed.real, entry.root)]
    candidates = [(p, part) for p, part in candidates if not any(contains(r, f"{listed.real}/{p}") for r in roots)]
    best = []
    for entry in corpora.entries if candidates else ():
        found = (_match(entry, shift, corpora, candidates, known) for shift in _shifts(entry, listed))
        match = max(found, key=lambda match: len(match.paths))
        if match.paths:
            few = min(len({path for path, _ in listed.parts}), len(set(_paths(entry, corpora, known))))
            best.append(replace(match, is_most=2 * len(match.paths) >= few))
    return best


@dataclass(frozen=True)
class _Shift:
    """A folder of a corpus (`below` its root), taken for a folder of the run (`prefix`); `root` is then its root."""

    root: str
    below: str = ""
    prefix: str = ""


def _shifts(entry: RegisteredCorpus, listed: Listed) -> Iterator[_Shift]:
    """The corpus is the run's folder; or the run's folder is a part of it; or it is a part of the run's folder."""
    yield _Shift(listed.real)
    for tail in _tails(listed.real):
        yield _Shift(listed.real[: -len(tail) - 1], below=f"{tail}/")
    for tail in _tails(entry.root):
        yield _Shift(f"{listed.real}/{tail}", prefix=f"{tail}/")


def _tails(folder: str) -> Iterator[str]:
    """The ends of a folder's path.

    >>> list(_tails("/data/a/b"))
    ['b', 'a/b']
    """
    parts = [part for part in folder.removeprefix("s3://").split("/") if part]
    for n in range(1, len(parts)):
        yield "/".join(parts[-n:])


def _match(
    entry: RegisteredCorpus, shift: _Shift, corpora: Corpora, candidates: Sequence[tuple[str, str]], known: Settled
) -> Match:
    name = corpora.namer(entry.root)
    shifted = (
        (shift.below + path[len(shift.prefix) :], part) for path, part in candidates if path.startswith(shift.prefix)
    )
    paths = dict.fromkeys(path for path, part in shifted if (name(path).identity, part) in known)
    return Match(entry, shift.root, tuple(paths))


def _paths(entry: RegisteredCorpus, corpora: Corpora, known: Settled) -> Iterable[str]:
    """The paths of a corpus' settled files."""
    for identity, _ in known:
        location = corpora.location(identity)
        if contains(entry.root, location):
            yield location[len(entry.root.rstrip("/")) + 1 :]
