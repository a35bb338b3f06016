"""Lists the files of a corpus with sizes and versions, in one call, in the same way on disk and on S3."""

from __future__ import annotations

import errno
import glob
import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from pipelines.sources.base import CorpusShard
from pipelines.sources.file_names import NOT_UTF8, bad_name_message, has_bad_name, is_utf8, readable
from pipelines.store.retries import CONTACT, has_ended, retry
from pipelines.store.storage import Storage, absolute, is_remote

GLOB_CHARACTERS = "*?["


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


def list_files(corpus: str, storage: Storage) -> list[FileInfo]:
    """The files of a file path, a folder (recursively), a glob, or an `s3://` prefix, sorted by uri.

    Names that begin with `.` are left out unless the user named them. On disk, symbolic links are followed. A broken
    link is listed, so that its record is rejected and not lost.

    A file whose name is not UTF-8 is listed under a readable name; see `file_names`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the corpus' own path is not UTF-8.
        PermissionError: the store refuses the credentials.
        OSError: the store cannot be reached.
    """
    root = absolute(corpus)
    if not is_utf8(root):
        raise ValueError(f"corpus {bad_name_message(readable(root))}, or name it by a link")
    try:
        found = retry(lambda: {info.uri: info for info in _find(root, storage)}, root, CONTACT)
    except FileNotFoundError:
        found = {}
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
    base = corpus_root(corpus, found.values())
    shown = [info for info in found.values() if not _has_part(info.uri, base, ".")]
    if not shown:
        raise FileNotFoundError(f"corpus {corpus}: nothing is there; give a file, a folder, a glob or an s3:// prefix")
    return sorted(shown, key=lambda info: info.uri)


def corpus_root(corpus: str, files: Iterable[FileInfo]) -> str:
    """The folder that relative names start from: a file's folder, or the part of a glob before its first wildcard."""
    uri = absolute(corpus)
    uris = [info.uri for info in files]
    if uri in uris:
        return posixpath.dirname(uri)
    if all(found.startswith(uri.rstrip("/") + "/") for found in uris):
        return uri
    parts = uri.split("/")
    wild = next((i for i, part in enumerate(parts) if any(c in part for c in GLOB_CHARACTERS)), len(parts))
    return "/".join(parts[:wild])


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
        version = _stat(shard.uri).version
        handle: Any = open(shard.uri, "rb")  # noqa: PTH123, SIM115  (the caller closes it)
    else:
        files = storage.filesystem(shard.uri)
        handle = files.open(shard.uri, "rb", cache_type=cache_type, block_size=block_size)
        version = _from_entry(handle.details).version
    if version != shard.version:
        handle.close()
        raise OSError(errno.ESTALE, f"{shard.uri} changed after it was listed; run the job again")
    return handle


def _find(root: str, storage: Storage) -> Iterator[FileInfo]:
    return _find_remote(root, storage) if is_remote(root) else _find_local(root)


def _find_local(root: str) -> Iterator[FileInfo]:
    if os.path.lexists(root) or not any(c in root for c in GLOB_CHARACTERS):
        paths = [root]
    else:
        paths = glob.glob(root, recursive=True)  # noqa: PTH207  (strings: a Path costs more than its stat)
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112
            yield from _walk(path)
        elif os.path.lexists(path):
            yield _stat(path)


def _walk(folder: str) -> Iterator[FileInfo]:
    """Files below a folder. fsspec's `find` would leave out symbolic links."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                yield _stat(entry.path)
            elif not (entry.is_symlink() and _is_above(entry.path, folder)):
                yield from _walk(entry.path)


def _is_above(link: str, folder: str) -> bool:
    """Whether a link leads to a folder that contains it. Following it would never end."""
    target = os.path.realpath(link).rstrip("/") + "/"
    return (os.path.realpath(folder) + "/").startswith(target)


def _stat(path: str) -> FileInfo:
    if not is_utf8(path):
        return FileInfo(uri=readable(path), size=0, version=NOT_UTF8)
    try:
        stat = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        if not os.path.islink(path):  # noqa: PTH114
            raise
        return FileInfo(uri=path, size=0, version="broken link")
    return FileInfo(uri=path, size=stat.st_size, version=f"{stat.st_size}-{stat.st_mtime_ns}")


def _find_remote(root: str, storage: Storage) -> Iterator[FileInfo]:
    files = storage.filesystem(root)
    if any(c in root for c in GLOB_CHARACTERS):
        entries = list(files.glob(root, detail=True).values())
        folders = [entry["name"] for entry in entries if entry["type"] == "directory"]
        entries += [entry for folder in folders for entry in files.find(folder, detail=True).values()]
    else:
        entries = list(files.find(root, detail=True).values())
    return (_from_entry(entry) for entry in entries if entry["type"] == "file")


def _from_entry(entry: dict[str, Any]) -> FileInfo:
    name, size = str(entry["name"]), int(entry["size"])
    etag = str(entry.get("ETag") or "").strip('"')
    return FileInfo(uri=name if is_remote(name) else f"s3://{name}", size=size, version=etag or f"{size}")


def _has_part(uri: str, root: str, prefix: str) -> bool:
    return uri != root and any(part.startswith(prefix) for part in relative_to(uri, root).split("/"))
