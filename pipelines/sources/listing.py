"""The files of a corpus: one listing call, with sizes and versions, the same on disk and on S3."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.storage import Storage, absolute, is_remote

GLOB_CHARACTERS = "*?["


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """A file.

    Attributes:
        uri: absolute.
        size: bytes.
        version: changes when the content does: the etag on S3, size and mtime on disk.
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

    Names that begin with `_` or `.` are left out, as Spark and Hive do, unless they are named themselves.

    Raises:
        FileNotFoundError: nothing is there.
        PermissionError: the store refuses the credentials.
        OSError: the store cannot be reached.
    """
    root = absolute(corpus)
    files = storage.filesystem(root)
    try:
        entries = list(_find(files, root))
    except FileNotFoundError:
        entries = []
    except PermissionError as error:
        raise PermissionError(
            f"corpus {corpus}: no right to read it ({error}); check credentials and rights"
        ) from error
    except OSError as error:
        raise OSError(f"corpus {corpus}: cannot be listed: {error}; check the endpoint and the network") from error
    found = [_info(root, entry) for entry in entries if entry["type"] == "file"]
    if not found:
        raise FileNotFoundError(f"corpus {corpus}: nothing is there; give a file, a folder, a glob or an s3:// prefix")
    shown = [info for info in found if info.uri == root or not _is_hidden(info.uri, _fixed_part(root))]
    return sorted(shown, key=lambda info: info.uri)


def relative_to(uri: str, root: str) -> str:
    """The part of `uri` below `root`; the whole uri where it is not below."""
    return uri.removeprefix(root.rstrip("/") + "/")


def _find(files: Any, root: str) -> Iterator[dict[str, Any]]:
    if any(c in root for c in GLOB_CHARACTERS):
        for path, entry in files.glob(root, detail=True).items():
            if entry["type"] == "directory":
                yield from files.find(path, detail=True).values()
            else:
                yield entry
    elif files.isfile(root):
        yield files.info(root)
    else:
        yield from files.find(root, detail=True).values()


def _info(root: str, entry: dict[str, Any]) -> FileInfo:
    name = str(entry["name"])
    uri = f"s3://{name}" if is_remote(root) and not is_remote(name) else name
    etag = str(entry.get("ETag") or "").strip('"')
    version = etag or f"{entry['size']}-{entry.get('mtime', '')}"
    return FileInfo(uri=uri, size=int(entry["size"]), version=version)


def _fixed_part(root: str) -> str:
    """A glob's folder before its first wildcard; a folder as it is."""
    parts = root.split("/")
    wild = next((i for i, part in enumerate(parts) if any(c in part for c in GLOB_CHARACTERS)), len(parts))
    return "/".join(parts[:wild])


def _is_hidden(uri: str, root: str) -> bool:
    return any(part.startswith(("_", ".")) for part in relative_to(uri, root).split("/"))


def suffixes_of(files: Iterable[FileInfo]) -> set[str]:
    """The extensions that occur."""
    return {info.suffix for info in files}
