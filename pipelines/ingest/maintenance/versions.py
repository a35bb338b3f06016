"""Which old versions and orphaned files maintenance may remove, decided by pure functions of plain data."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

_DATA = "data/"
_SUFFIX = ".lance"


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a table.

    Attributes:
        number: the version's number.
        made: when it was committed, Unix seconds.
    """

    number: int
    made: float


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file in a table's folder.

    Attributes:
        path: the file's path, relative to the folder.
        size: its size in bytes.
        modified: when it was last modified, Unix seconds.
    """

    path: str
    size: int
    modified: float


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Which versions stay: the newest `keep_versions`, and all that are younger than `keep_s`.

    Attributes:
        keep_versions: number of newest versions to keep; None for no such rule. The newest one always stays.
        keep_s: age in seconds up to which a version is kept; None for no such rule.
        min_age_s: age in seconds that a file must reach before it is removed because no version names it.
    """

    keep_versions: int | None
    keep_s: float | None
    min_age_s: float


def removable_versions(
    versions: Iterable[Version], retention: Retention, *, tagged: Collection[int], recorded: int, now: float
) -> list[int]:
    """The versions that no rule keeps, oldest first.

    Args:
        versions: all existing versions.
        retention: the rules; a version stays if any of them keeps it.
        tagged: versions with a tag; they stay.
        recorded: the newest version whose claims the stored ledger holds; later versions stay.
        now: the time, Unix seconds.

    >>> versions = [Version(number=n, made=n * 10.0) for n in range(1, 6)]
    >>> rules = Retention(keep_versions=2, keep_s=None, min_age_s=0)
    >>> removable_versions(versions, rules, tagged={2}, recorded=5, now=100)
    [1, 3]
    """
    ordered = sorted(versions, key=lambda version: version.number)
    newest = max(1, retention.keep_versions or 1)
    return [
        version.number
        for version in ordered[:-newest]
        if version.number not in tagged
        and version.number <= recorded
        and (retention.keep_s is None or now - version.made > retention.keep_s)
    ]


def orphaned_files(
    present: Iterable[StoredFile], named: Collection[str], min_age_s: float, now: float
) -> list[StoredFile]:
    """Data files that no version names and that are too old for a running job to commit them yet.

    Args:
        present: the existing files, listed before `named` was read.
        named: paths that some version names.
        min_age_s: age in seconds from which a file counts as orphaned; see `Retention`.
        now: the time, Unix seconds.
    """
    return [
        file
        for file in present
        if file.path.startswith(_DATA)
        and file.path.endswith(_SUFFIX)
        and file.path not in named
        and now - file.modified >= min_age_s
    ]
