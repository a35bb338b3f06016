"""The corpora that filled a table, recorded in its config: where each one was first, and where it is now.

A file is known by the identity of its corpus and its path below the corpus' root. So a corpus that is moved, or named
by another path, keeps its files, shards and row ids.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from encoders.digest import digest_json
from pipelines.store.retries import retried
from pipelines.store.storage import TableRef, relocated
from pipelines.tables.opening import open_dataset
from pipelines.tables.promotion import promotions

if TYPE_CHECKING:
    import lance

log = logging.getLogger(__name__)
_PREFIX = "isthmus.corpus."
# What the identities of corpora begin with that have a name; others begin with a folder.
NAMED = "corpus:"


@dataclass(frozen=True, kw_only=True)
class RegisteredCorpus:
    """A corpus of a table.

    Attributes:
        name: the name that the user gave it, or else its first root.
        identity_root: what the identities of its files begin with. It never changes.
        root: the folder that it is in now, without links.
        aliases: other paths of that folder, and folders that it was in before. Rows may name pictures by them.
    """

    name: str
    identity_root: str
    root: str
    aliases: tuple[str, ...] = ()

    @property
    def has_own_name(self) -> bool:
        """Whether the user named it."""
        return "/" not in self.name

    def moved(self, root: str, *aliases: str) -> RegisteredCorpus:
        """The corpus in another folder, or with other paths that lead to it."""
        known = dict.fromkeys([*self.aliases, self.root, *aliases])
        return replace(self, root=root, aliases=tuple(alias for alias in known if alias != root))


class FileName(NamedTuple):
    """What a file of a corpus is known by.

    Attributes:
        identity: its identity within a table.
        row_path: what row ids are derived from: its path below the root of its corpus, after the corpus' name if the
            user gave it one.
    """

    identity: str
    row_path: str


@dataclass(frozen=True)
class Corpora:
    """The corpora of a table. A file belongs to the one with the longest root that contains it."""

    entries: tuple[RegisteredCorpus, ...] = ()

    def named(self, name: str) -> RegisteredCorpus | None:
        """The corpus of this name."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def with_entry(self, entry: RegisteredCorpus, instead_of: RegisteredCorpus | None = None) -> Corpora:
        """With one more corpus, or with one in place of another."""
        others = [other for other in self.entries if other is not instead_of]
        return Corpora(tuple(sorted([*others, entry], key=lambda entry: entry.name)))

    def namer(self, folder: str) -> Callable[[str], FileName]:
        """A function that names the files of a folder, given their paths below it.

        Args:
            folder: the folder, as registered roots name it. A corpus contains it.
        """
        near = [entry for entry in self._by_root if contains(entry.root, folder) or contains(folder, entry.root)]
        homes = [(_slashed(entry.root), self._namer(entry)) for entry in near]
        if len(homes) == 1 and homes[0][0] == _slashed(folder):
            return homes[0][1]  # The usual case, in which a run may have a million files.
        start = _slashed(folder)

        def name(path: str) -> FileName:
            location = start + path
            for root, inside in homes:
                if location.startswith(root):
                    return inside(location[len(root) :])
            return FileName(location, path)

        return name

    def home(self, location: str) -> RegisteredCorpus | None:
        """The corpus that a file belongs to, given where it is."""
        return next((entry for entry in self._by_root if contains(entry.root, location)), None)

    def location(self, identity: str) -> str:
        """Where the file of an identity is now, or would be if it were there."""
        for entry in self._by_identity:
            if contains(entry.identity_root, identity):
                return f"{entry.root.rstrip('/')}/{identity[len(entry.identity_root) :].lstrip('/')}"
        return identity

    def locate(self, uri: str) -> str:
        """The present URI of a picture or corpus that was recorded when its corpus may have been elsewhere."""
        return relocated(uri, self.moves())

    def moves(self) -> tuple[tuple[str, str], ...]:
        """Folders that rows may name and where their files are now, the longest first; empty if nothing moved."""
        if not any(entry.aliases for entry in self.entries):
            return ()
        found = {alias: entry.root for entry in self.entries for alias in entry.aliases}
        found |= {entry.root: entry.root for entry in self.entries}
        return tuple(sorted(found.items(), key=lambda move: len(move[0]), reverse=True))

    def _namer(self, entry: RegisteredCorpus) -> Callable[[str], FileName]:
        """A function that names the files of a corpus, given their paths below its root."""
        root = _slashed(entry.identity_root)
        others = [
            o.identity_root for o in self.entries if o is not entry and contains(entry.identity_root, o.identity_root)
        ]
        has_own_name = entry.identity_root.startswith(NAMED)

        def name(path: str) -> FileName:
            identity = root + path
            if others and any(contains(other, identity) for other in others):
                # It is in a folder that another corpus was in first.
                identity = f"{root}/{path}"
            if not identity.isascii():
                identity, path = _printable(identity), _printable(path)
            return FileName(identity, identity if has_own_name else path)

        return name

    @cached_property
    def _by_root(self) -> list[RegisteredCorpus]:
        return sorted(self.entries, key=lambda entry: len(entry.root), reverse=True)

    @cached_property
    def _by_identity(self) -> list[RegisteredCorpus]:
        return sorted(self.entries, key=lambda entry: len(entry.identity_root), reverse=True)


def _printable(path: str) -> str:
    """A path as a table can hold it. Names from old archives may not be UTF-8; two of them stay two.

    >>> _printable("caf\\udce9")
    'caf\\\\udce9'
    """
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _slashed(folder: str) -> str:
    return folder.rstrip("/") + "/"


def contains(folder: str, uri: str) -> bool:
    """Whether a path is a folder, or below it.

    >>> [contains("/data", path) for path in ("/data", "/data/a.jpg", "/database")]
    [True, True, False]
    """
    return uri == folder or uri.startswith(folder.rstrip("/") + "/")


def read_corpora(dataset: lance.LanceDataset | None) -> Corpora:
    """The corpora of a table; none if it does not exist."""
    config = dataset.config() if dataset is not None else {}
    found = [_entry(json.loads(value)) for key, value in config.items() if key.startswith(_PREFIX)]
    return Corpora(tuple(sorted(found, key=lambda entry: entry.name)))


def moves_of(table: TableRef) -> tuple[tuple[str, str], ...]:
    """Where the pictures of a table's rows, and of the table that answers for it, are now; see `Storage.moves`."""
    latest = replace(table, version=None)
    dataset = open_dataset(latest)
    found = dict(read_corpora(dataset).moves())
    for promotion in promotions(dataset)[-1:]:
        promoted = TableRef(database=table.database, name=promotion.name, storage=table.storage)
        found |= read_corpora(open_dataset(promoted, missing_ok=True)).moves()
    return tuple(sorted(found.items(), key=lambda move: len(move[0]), reverse=True))


@retried
def remember_corpora(table: TableRef, corpora: Corpora) -> None:
    """Record the corpora of a table. This makes a new version of the table if one is new or has moved."""
    dataset = open_dataset(table)
    roots = {entry.identity_root: entry.root for entry in read_corpora(dataset).entries}
    for entry in corpora.entries:
        if (before := roots.get(entry.identity_root, entry.root)) != entry.root:
            log.warning("corpus %s of table %s is in %s now; it was in %s", entry.name, table, entry.root, before)
    wanted = {_PREFIX + digest_json(e.identity_root): json.dumps(asdict(e), sort_keys=True) for e in corpora.entries}
    config = dataset.config()
    new: dict[str, str | None] = {key: value for key, value in wanted.items() if config.get(key) != value}
    if new:
        dataset.update_config(new)


def _entry(data: dict[str, Any]) -> RegisteredCorpus:
    return RegisteredCorpus(**{**data, "aliases": tuple(data["aliases"])})
