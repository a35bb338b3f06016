"""Walks a disk or a store for the files that a pattern names. Folders that the pattern cannot name are not read."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipelines.sources.patterns import Matched, Pattern, parts_below
from pipelines.store.storage import is_remote

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def named_on_disk(pattern: Pattern) -> Iterator[str]:
    """The paths of the files on disk that a pattern names, each once.

    Raises:
        PermissionError: a folder may not be read.
        OSError: the disk cannot be read.
    """
    yield from _walk(pattern, pattern.root, pattern.start, ())


def named_in_store(files: AbstractFileSystem, pattern: Pattern) -> Iterator[dict[str, Any]]:
    """The entries of the objects in a store that a pattern names, each once.

    Raises:
        OSError: the store cannot be read.
    """
    yield from _visit(files, pattern, pattern.root, pattern.start)


def uri_of(entry: dict[str, Any]) -> str:
    """The URI of a store's entry."""
    name = str(entry["name"])
    return name if is_remote(name) else f"s3://{name}"


def _walk(pattern: Pattern, folder: str, matched: Matched, above: tuple[str, ...]) -> Iterator[str]:
    """The paths below a folder that the pattern names.

    Args:
        pattern: what the corpus names.
        folder: the folder.
        matched: what its path has matched.
        above: the folders that led here.
    """
    only = pattern.only_name(matched)
    if only is not None:
        yield from _enter(pattern, posixpath.join(folder, only), pattern.step(matched, only), (*above, folder))
        return
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):  # It was there a moment ago.
        return
    with entries:
        for entry in entries:
            if not (found := pattern.step(matched, entry.name)):
                continue
            if not _is_folder(entry):
                if pattern.named(found):
                    yield entry.path
                continue
            if entry.is_symlink() and _leads_above(entry.path, (*above, folder)):
                found = pattern.advance(matched, entry.name)
            if found:
                yield from _walk(pattern, entry.path, found, (*above, folder))


def _enter(pattern: Pattern, path: str, matched: Matched, above: tuple[str, ...]) -> Iterator[str]:
    if os.path.isdir(path):  # noqa: PTH112
        yield from _walk(pattern, path, matched, above)
    elif pattern.named(matched) and os.path.lexists(path):
        yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_above(link: str, folders: tuple[str, ...]) -> bool:
    """Whether a link leads to one of the folders, or to a folder above one. Following it would never end."""
    target = os.path.realpath(link).rstrip("/") + "/"
    return any((os.path.realpath(folder) + "/").startswith(target) for folder in folders)


def _visit(files: AbstractFileSystem, pattern: Pattern, folder: str, matched: Matched) -> Iterator[dict[str, Any]]:
    """The objects below a prefix that the pattern names: one listing of a prefix that is named as a whole."""
    if pattern.descends(matched):
        yield from _find(files, pattern, folder, matched)
        return
    only = pattern.only_name(matched)
    if only is not None:
        yield from _visit(files, pattern, f"{folder}/{only}", pattern.step(matched, only))
        return
    for entry in _entries(files, folder):
        uri = uri_of(entry)
        if uri.rstrip("/") == folder:  # an empty object that stands for the folder
            continue
        found = pattern.step(matched, posixpath.basename(uri.rstrip("/")))
        if found and entry["type"] == "directory":
            yield from _visit(files, pattern, uri.rstrip("/"), found)
        elif entry["type"] == "file" and pattern.named(found):
            yield entry


def _entries(files: AbstractFileSystem, folder: str) -> list[dict[str, Any]]:
    try:
        return list(files.ls(folder, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _find(files: AbstractFileSystem, pattern: Pattern, folder: str, matched: Matched) -> Iterator[dict[str, Any]]:
    for entry in files.find(folder, detail=True).values():
        if entry["type"] != "file":
            continue
        uri, found = uri_of(entry), matched
        if uri != folder:
            for name in parts_below(uri, folder):
                found = pattern.step(found, name)
        if pattern.named(found):
            yield entry
