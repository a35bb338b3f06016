"""The pictures that a page shows and that its users bring. Nothing is read that a table's own corpora do not hold."""

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
from pipelines.tables.filters import quote

if TYPE_CHECKING:
    import lance

_SHOWN_SIDE = 320
_KEPT_SIDE = 640
_WILDCARDS = "*?["


class PictureStore(Protocol):
    """Holds small pictures by their digest, for a while."""

    def put(self, digest: str, small: bytes) -> None:
        """Hold a picture."""
        ...

    def get(self, digest: str) -> bytes:
        """The picture, as a JPEG.

        Raises:
            KeyError: it is not held, or not any more.
        """
        ...


class HeldPictures:
    """A store in the memory of this process; when it is full, those go first that nobody asked for the longest."""

    def __init__(self, most: int = 1_000, most_bytes: int = 128 * 1024 * 1024) -> None:
        """An empty store.

        Args:
            most: pictures that it holds.
            most_bytes: of all of them together.
        """
        self._most, self._most_bytes = most, most_bytes
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, digest: str, small: bytes) -> None:
        """Hold a picture."""
        with self._lock:
            self._bytes += len(small) - len(self._held.pop(digest, b""))
            self._held[digest] = small
            while len(self._held) > self._most or self._bytes > self._most_bytes:
                _, oldest = self._held.popitem(last=False)
                self._bytes -= len(oldest)

    def get(self, digest: str) -> bytes:
        """The picture, as a JPEG.

        Raises:
            KeyError: it is not held, or not any more.
        """
        with self._lock:
            self._held.move_to_end(digest)
            return self._held[digest]


class BroughtPictures:
    """Pictures that users brought, made small, by their digest.

    A picture's digest stands in the page's URL, so that a link can be shared as long as the store holds it.
    """

    def __init__(self, store: PictureStore | None = None) -> None:
        """Pictures of a store; None holds them in this process."""
        self._store: PictureStore = HeldPictures() if store is None else store

    def add(self, data: bytes, max_pixels: int) -> str:
        """Hold a picture; its digest.

        Raises:
            ImageError: it is no picture, or too large.
        """
        small = thumbnail(data, _KEPT_SIDE, max_pixels)
        digest = hashlib.sha256(small).hexdigest()[:32]
        self._store.put(digest, small)
        return digest

    def get(self, digest: str) -> bytes:
        """The picture, as a JPEG.

        Raises:
            KeyError: it is not held, or not any more.
        """
        return self._store.get(digest)


def corpus_root(corpus: str) -> str:
    """The folder in which a corpus' own files lie: itself, or that of its file or pattern."""
    wild = min((corpus.find(mark) for mark in _WILDCARDS if mark in corpus), default=-1)
    if wild >= 0:
        return corpus[:wild].rpartition("/")[0]
    last = corpus.rstrip("/").rpartition("/")[2]
    is_file = Path(corpus).is_file() if not is_remote(corpus) else "." in last
    return corpus.rstrip("/").rpartition("/")[0] if is_file else corpus.rstrip("/")


def is_within(uri: str, roots: Sequence[str]) -> bool:
    """Whether a picture's file lies in one of the folders, links and `..` followed."""
    path = file_of(uri)
    if is_remote(path):
        bucket, _, key = path.removeprefix("s3://").partition("/")
        if not path.startswith("s3://") or posixpath.normpath(key) != key:
            return False
        return any(f"s3://{bucket}/{key}".startswith(root.rstrip("/") + "/") for root in roots if is_remote(root))
    real = os.path.realpath(path)
    # The root of a corpus that lies in "/" is "": neither all files nor those of the working directory are its own.
    return any(real.startswith(os.path.realpath(root) + os.sep) for root in roots if root and not is_remote(root))


def row_picture(dataset: lance.LanceDataset, row_id: str, roots: Sequence[str], storage: Storage) -> bytes:
    """A row's picture, small, as a JPEG: the thumbnail in the table, else from its file if a root holds that.

    Raises:
        KeyError: there is no such row, or it has no picture.
        PermissionError: its file lies in none of the roots.
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
    if not is_within(uri, roots):
        raise PermissionError(f"row {row_id!r}: its picture lies outside the table's corpora")
    return thumbnail(read_image(uri, storage), _SHOWN_SIDE)
