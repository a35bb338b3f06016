"""Lists the files of a corpus with sizes and versions, in one pass, in the same way on disk and on S3."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

from pipelines.sources.base import CorpusShard
from pipelines.sources.file_names import NOT_UTF8, bad_name_message, has_bad_name, is_utf8, readable
from pipelines.sources.patterns import Pattern, is_pattern
from pipelines.sources.walking import named_in_store, named_on_disk, uri_of
from pipelines.store.retries import CONTACT, has_ended, retry
from pipelines.store.storage import Storage, absolute, is_remote


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """A file of the corpus.

    Attributes:
        uri: absolute path or `s3://` URI.
        size: size in bytes.
        version: a string that changes when the content does: the etag on S3, size and mtime on disk.
    """

    uri: str
    size: int
    version: str

    @property
    def name(self) -> str:
        """The last part of the uri."""
        return posixpath.basename(self.uri)

    @property
    def suffix(self) -> str:
        """The lower-case extension with its dot, or an empty string."""
        return posixpath.splitext(self.name)[1].lower()


@dataclass(frozen=True)
class Listing:
    """The files of a corpus, and the pattern that named them.

    Attributes:
        pattern: what the corpus names.
        files: the files that are there, sorted by uri.
    """

    pattern: Pattern
    files: tuple[FileInfo, ...]

    @property
    def root(self) -> str:
        """The folder that relative names start from."""
        return self.pattern.root

    def misses(self, path: str) -> bool:
        """Whether the corpus would name a file of this path, relative to the root, and it is not there."""
        return path not in self._paths and self.pattern.covers(path)

    @cached_property
    def _paths(self) -> frozenset[str]:
        return frozenset(relative_to(info.uri, self.root) for info in self.files)


def list_corpus(corpus: str, storage: Storage) -> Listing:
    """The files of a file path, a folder (recursively), a glob, or an `s3://` prefix.

    Names that begin with `.` are left out unless the user named them. On disk, symbolic links are followed. A broken
    link is listed, so that its record is rejected and not lost.

    A file whose name is not UTF-8 is listed under a readable name; see `file_names`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the corpus' own path is not UTF-8.
        PermissionError: the store refuses the credentials.
        OSError: the store cannot be reached.
    """
    uri = absolute(corpus)
    if not is_utf8(uri):
        raise ValueError(f"corpus {bad_name_message(readable(uri))}, or name it by a link")
    try:
        listing = retry(lambda: _list(uri, storage), uri, CONTACT)
    except FileNotFoundError:
        listing = Listing(Pattern.folder(uri), ())
    except (PermissionError, ConnectionError) as error:
        if has_ended(error):
            raise type(error)(f"corpus {error}") from None
        raise PermissionError(
            f"corpus {corpus}: no right to read it ({error}); check credentials and rights"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith("botocore"):
            raise OSError(f"corpus {corpus}: cannot be listed: {error}; check the endpoint and the network") from error
        raise
    if not listing.files:
        raise FileNotFoundError(f"corpus {corpus}: nothing is there; give a file, a folder, a glob or an s3:// prefix")
    return listing


def list_files(corpus: str, storage: Storage) -> list[FileInfo]:
    """The files of `list_corpus`."""
    return list(list_corpus(corpus, storage).files)


def without_underscored(files: Iterable[FileInfo], root: str) -> list[FileInfo]:
    """The files without those whose name or folder begins with `_`, which Spark and Hive leave out too.

    Not for pictures: cameras name them `_DSC0001.jpg`.
    """
    return [info for info in files if not _has_part(info.uri, root, "_")]


def well_named(files: Iterable[FileInfo], corpus: str) -> list[FileInfo]:
    """The files whose names are UTF-8: only their content is read.

    Raises:
        ValueError: there is none; names a file and the remedy.
    """
    files = list(files)
    found = [info for info in files if not has_bad_name(info.version)]
    if not found:
        raise ValueError(f"corpus {corpus}: {bad_name_message(files[0].uri)}")
    return found


def relative_to(uri: str, root: str) -> str:
    """The part of `uri` below `root`; the whole uri if it is not below."""
    return uri.removeprefix(root.rstrip("/") + "/")


def open_shard(
    shard: CorpusShard, storage: Storage, *, cache_type: str = "none", block_size: int = 5 << 20
) -> IO[bytes]:
    """Open the file of a shard.

    Args:
        shard: the shard to open.
        storage: how to reach it.
        cache_type: how fsspec reads ahead on S3; `none` if the caller buffers.
        block_size: number of bytes read ahead at once.

    Raises:
        ValueError: the file's name is not UTF-8.
        OSError: the file changed after it was listed, so its records would not be those of the shard.
    """
    if has_bad_name(shard.version):
        raise ValueError(bad_name_message(shard.uri))
    if not is_remote(shard.uri):
        info = _stat(shard.uri)
        version = info.version if info else None
        handle: Any = open(shard.uri, "rb")  # noqa: PTH123, SIM115  (the caller closes it)
    else:
        files = storage.filesystem(shard.uri)
        handle = files.open(shard.uri, "rb", cache_type=cache_type, block_size=block_size)
        version = _from_entry(handle.details).version
    if version != shard.version:
        handle.close()
        raise OSError(errno.ESTALE, f"{shard.uri} changed after it was listed; run the job again")
    return handle


def _list(uri: str, storage: Storage) -> Listing:
    pattern, found = (_list_remote if is_remote(uri) else _list_local)(uri, storage)
    return Listing(pattern, tuple(sorted(found, key=lambda info: info.uri)))


def _list_local(uri: str, storage: Storage) -> tuple[Pattern, list[FileInfo]]:
    if os.path.isdir(uri):  # noqa: PTH112  (strings: a Path costs more than its stat)
        pattern = Pattern.folder(uri)
    elif os.path.lexists(uri) or not is_pattern(uri):
        pattern = Pattern.file(uri)
    else:
        pattern = Pattern.glob(uri)
    return pattern, [info for path in named_on_disk(pattern) if (info := _stat(path))]


def _stat(path: str) -> FileInfo | None:
    """The entry of a file; None if it has just vanished."""
    if not is_utf8(path):
        return FileInfo(uri=readable(path), size=0, version=NOT_UTF8)
    try:
        stat = os.stat(path)  # noqa: PTH116
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            raise
        return FileInfo(uri=path, size=0, version="broken link") if os.path.islink(path) else None  # noqa: PTH114
    return FileInfo(uri=path, size=stat.st_size, version=f"{stat.st_size}-{stat.st_mtime_ns}")


def _list_remote(uri: str, storage: Storage) -> tuple[Pattern, list[FileInfo]]:
    files = storage.filesystem(uri)
    pattern = Pattern.folder(uri)
    # A key may have the characters of wildcards.
    found = list(named_in_store(files, pattern))
    if not found and is_pattern(uri):
        pattern = Pattern.glob(uri)
        found = list(named_in_store(files, pattern))
    infos = [_from_entry(entry) for entry in found]
    return (Pattern.file(uri) if [info.uri for info in infos] == [uri] else pattern), infos


def _from_entry(entry: dict[str, Any]) -> FileInfo:
    size, etag = int(entry["size"]), str(entry.get("ETag") or "").strip('"')
    return FileInfo(uri=uri_of(entry), size=size, version=etag or f"{size}")


def _has_part(uri: str, root: str, prefix: str) -> bool:
    return uri != root and any(part.startswith(prefix) for part in relative_to(uri, root).split("/"))
