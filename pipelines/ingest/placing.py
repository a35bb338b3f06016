"""Which corpus of a table the files of a run belong to: the same as before, one that has moved, or a new one.

Pure, except for what `World` asks of disks and stores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipelines.ingest.moving import Listed, Settled, moved_corpus, refuse_copy, rerooted
from pipelines.ingest.world import World
from pipelines.ledger.coverage import Coverage
from pipelines.sources.patterns import Pattern
from pipelines.store.storage import is_remote
from pipelines.tables.corpora import NAMED, Corpora, RegisteredCorpus, contains, read_corpora
from pipelines.tables.jobs import jobs_of

if TYPE_CHECKING:
    import lance


@dataclass(frozen=True)
class Placed:
    """The corpora of a table with those of a run.

    Attributes:
        corpora: the corpora.
        folder: the run's folder, as the registered roots name it.
    """

    corpora: Corpora
    folder: str


def place(corpora: Corpora, listed: Listed, name: str | None, settled: Callable[[], Settled], world: World) -> Placed:
    """Find the corpus of a run's files, or register it.

    Args:
        corpora: the corpora of the table.
        listed: the files of the run.
        name: the name that the user gave the corpus.
        settled: gives the files and parts that the table holds.
        world: what is known about folders.

    Raises:
        ValueError: the files are a copy of a registered corpus, or the name does not fit; nothing was written.
    """
    home = _home(corpora, listed.real, world)
    if name is not None and (entry := corpora.named(name)) is not None:
        return _place_registered(corpora, listed, entry, home)
    if home is not None:
        return _at_home(corpora, listed, *home) if name is None else _named_home(corpora, listed, name, *home)
    known = settled()
    moved = moved_corpus(corpora, listed, known, world)
    if moved is not None and (name is None or not moved.entry.has_own_name):
        return place(rerooted(corpora, moved.entry, moved.root), listed, name, lambda: known, world)
    if name is not None:
        return Placed(corpora.with_entry(_named_entry(corpora, listed, name)), listed.real)
    refuse_copy(corpora, listed, known, world)
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


def _place_registered(
    corpora: Corpora, listed: Listed, entry: RegisteredCorpus, home: tuple[RegisteredCorpus, str] | None
) -> Placed:
    """The corpus that the user named. It may be in another folder now, whatever is in the former one.

    Raises:
        ValueError: the folder is another corpus', or a folder above that of the corpus.
    """
    if home is not None:
        if home[0] is not entry:
            raise _taken(entry.name, listed, home[0])
        return _at_home(corpora, listed, *home)
    if contains(listed.real, entry.root):
        raise ValueError(
            f"corpus_name {entry.name!r}: its folder is {entry.root}, which is within {listed.folder}; "
            "name the same folder as before, or give another --corpus-name"
        )
    corpora = rerooted(corpora, entry, listed.real)
    found = corpora.named(entry.name)
    assert found is not None
    return _at_home(corpora, listed, found, listed.real)


def _named_home(corpora: Corpora, listed: Listed, name: str, home: RegisteredCorpus, folder: str) -> Placed:
    """A new name for a folder that had none. Nothing is embedded twice.

    Raises:
        ValueError: the folder has another name, or is only a part of a corpus.
    """
    if home.has_own_name or folder != home.root:
        raise _taken(name, listed, home)
    _check_name(corpora, name)
    named = replace(home, name=name)
    return _at_home(corpora.with_entry(named, home), listed, named, folder)


def _taken(name: str, listed: Listed, home: RegisteredCorpus) -> ValueError:
    return ValueError(
        f"corpus_name {name!r}: {listed.folder} is in corpus {home.name!r} of this table already; "
        "omit --corpus-name, or give that name"
    )


def _new_entry(corpora: Corpora, listed: Listed, known: Settled) -> RegisteredCorpus:
    """A corpus that has no name of its own.

    Its identity is its root, so that tables from before corpora were registered keep their files. These named files by
    the path that the user gave.
    """
    was_given = any(contains(listed.folder, identity) for identity, _ in known)
    root = listed.folder if was_given else listed.real
    if any(contains(entry.identity_root, root) for entry in corpora.entries):
        # Another corpus was here first, and took its identity along.
        root = _free(NAMED + quote(listed.real, safe=""), {entry.identity_root for entry in corpora.entries})
    name = _free(listed.real, {entry.name for entry in corpora.entries})
    return RegisteredCorpus(name=name, identity_root=root, root=listed.real).moved(listed.real, listed.folder)


def _named_entry(corpora: Corpora, listed: Listed, name: str) -> RegisteredCorpus:
    """A corpus with a name of its own.

    Raises:
        ValueError: it is not a name.
    """
    _check_name(corpora, name)
    identity = _free(NAMED + name, {entry.identity_root for entry in corpora.entries})
    entry = RegisteredCorpus(name=name, identity_root=identity, root=listed.real)
    return entry.moved(listed.real, listed.folder)


def _check_name(corpora: Corpora, name: str) -> None:
    if not name or not all(character.isalnum() or character in "_-." for character in name):
        there = ", ".join(repr(entry.name) for entry in corpora.entries) or "none"
        raise ValueError(
            f"corpus_name {name!r}: not a corpus of this table (there are: {there}); a new name may hold letters, "
            "digits, '_', '-' and '.'"
        )


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
