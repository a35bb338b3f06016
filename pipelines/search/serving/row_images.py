"""The pictures that a page shows and that users bring. Files are read only from a table's own corpora."""

from __future__ import annotations

import hashlib
import os
import posixpath
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from encoders.images import thumbnail
from pipelines.rows.contract import IMAGE_URI, ROW_ID, THUMBNAIL
from pipelines.sources.locate import file_of, read_image
from pipelines.store.storage import Storage, is_remote
from pipelines.tables.corpora import read_corpora
from pipelines.tables.filters import quote

if TYPE_CHECKING:
    import lance

_SHOWN_SIDE = 320
_KEPT_SIDE = 640
_WILDCARDS = "*?["


class PictureStore(Protocol):
    """Holds small pictures by their digest, for a while."""

    def put(self, digest: str, small: bytes) -> None:
        """Store a picture under its digest."""
        ...

    def get(self, digest: str) -> bytes:
        """The picture, as a JPEG.

        Raises:
            KeyError: it was never stored, or was dropped since.
        """
        ...


class HeldPictures:
    """A store in the memory of this process. When it is full, it drops the least recently used pictures."""

    def __init__(self, most: int = 1_000, most_bytes: int = 128 * 1024 * 1024) -> None:
        """Create an empty store.

        Args:
            most: largest number of pictures.
            most_bytes: largest total size, in bytes.
        """
        self._most, self._most_bytes = most, most_bytes
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, digest: str, small: bytes) -> None:
        """Store a picture under its digest."""
        with self._lock:
            self._bytes += len(small) - len(self._held.pop(digest, b""))
            self._held[digest] = small
            while len(self._held) > self._most or self._bytes > self._most_bytes:
                _, oldest = self._held.popitem(last=False)
                self._bytes -= len(oldest)

    def get(self, digest: str) -> bytes:
        """The picture, as a JPEG.

        Raises:
            KeyError: it was never stored, or was dropped since.
        """
        with self._lock:
            self._held.move_to_end(digest)
            return self._held[digest]


class BroughtPictures:
    """Pictures that users brought, scaled down, by their digest.

    The digest is part of the page's URL, so a link can be shared for as long as the store holds the picture.
    """

    def __init__(self, store: PictureStore | None = None) -> None:
        """Use the given store; None stores pictures in this process."""
        self._store: PictureStore = HeldPictures() if store is None else store

    def add(self, data: bytes, max_pixels: int) -> str:
        """Store a picture; return its digest.

        Args:
            data: the picture's bytes.
            max_pixels: pictures with more pixels are refused.

        Raises:
            ImageError: the bytes are not a picture, or it is too large.
        """
        small = thumbnail(data, _KEPT_SIDE, max_pixels)
        digest = hashlib.sha256(small).hexdigest()[:32]
        self._store.put(digest, small)
        return digest

    def get(self, digest: str) -> bytes:
        """The picture, as a JPEG.

        Raises:
            KeyError: it was never stored, or was dropped since.
        """
        return self._store.get(digest)


def corpus_root(corpus: str) -> str:
    """The folder that holds a corpus' files: the corpus itself, or the folder of its file or pattern."""
    wild = min((corpus.find(mark) for mark in _WILDCARDS if mark in corpus), default=-1)
    if wild >= 0:
        return corpus[:wild].rpartition("/")[0]
    last = corpus.rstrip("/").rpartition("/")[2]
    is_file = Path(corpus).is_file() if not is_remote(corpus) else "." in last
    return corpus.rstrip("/").rpartition("/")[0] if is_file else corpus.rstrip("/")


def is_within(uri: str, roots: Sequence[str]) -> bool:
    """Whether a picture's file is in one of the folders, after resolving links and `..`."""
    path = file_of(uri)
    if is_remote(path):
        bucket, _, key = path.removeprefix("s3://").partition("/")
        if not path.startswith("s3://") or posixpath.normpath(key) != key:
            return False
        return any(f"s3://{bucket}/{key}".startswith(root.rstrip("/") + "/") for root in roots if is_remote(root))
    real = os.path.realpath(path)
    # For a corpus in "/", the root is "". It must not admit all files or those of the working directory.
    return any(real.startswith(os.path.realpath(root) + os.sep) for root in roots if root and not is_remote(root))


def row_picture(dataset: lance.LanceDataset, row_id: str, roots: Sequence[str], storage: Storage) -> bytes:
    """A row's picture, scaled down, as a JPEG: its thumbnail, or else its file if that is within a root.

    Args:
        dataset: the table.
        row_id: the row's id.
        roots: folders that pictures may be read from.
        storage: how to reach them.

    Raises:
        KeyError: there is no such row, or it has no picture.
        PermissionError: the file is in none of the roots.
        ImageError: the picture cannot be decoded.
        OSError: the file cannot be read.
    """
    columns = [name for name in (THUMBNAIL, IMAGE_URI) if name in dataset.schema.names]
    rows = dataset.scanner(columns=columns, filter=f"{ROW_ID} = {quote(row_id)}", limit=1).to_table().to_pylist()
    if not rows:
        raise KeyError(row_id)
    (row,) = rows
    if kept := row.get(THUMBNAIL):
        return bytes(kept)
    uri = row.get(IMAGE_URI)
    if not uri:
        raise KeyError(row_id)
    here = storage.with_moves(read_corpora(dataset).moves())
    uri = here.locate(uri)
    if not is_within(uri, roots):
        raise PermissionError(f"row {row_id!r}: its picture lies outside the table's corpora")
    return thumbnail(read_image(uri, storage), _SHOWN_SIDE)
