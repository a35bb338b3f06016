"""The pictures that a page shows and that its users bring. Nothing is read that a table's own corpora do not hold."""

from __future__ import annotations

import hashlib
import os
import posixpath
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from encoders.images import thumbnail
from pipelines.contract import IMAGE_URI, ROW_ID, THUMBNAIL
from pipelines.filters import quote
from pipelines.sources.locate import file_of, read_image
from pipelines.storage import Storage, is_remote

if TYPE_CHECKING:
    import lance

_SHOWN_SIDE = 320
_KEPT_SIDE = 640
_WILDCARDS = "*?["


class BroughtPictures:
    """Pictures that users brought, made small, by their digest; the oldest go first.

    A picture's digest stands in the page's URL, so that a link can be shared as long as the server runs.
    """

    def __init__(self, most: int = 1_000) -> None:
        self._most = most
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, data: bytes, max_pixels: int) -> str:
        """Keep a picture; its digest.

        Raises:
            ImageError: it is no picture, or too large.
        """
        small = thumbnail(data, _KEPT_SIDE, max_pixels)
        digest = hashlib.sha256(small).hexdigest()[:32]
        with self._lock:
            self._kept[digest] = small
            self._kept.move_to_end(digest)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return digest

    def get(self, digest: str) -> bytes:
        """The picture, as a JPEG.

        Raises:
            KeyError: it is not kept, or not any more.
        """
        with self._lock:
            self._kept.move_to_end(digest)
            return self._kept[digest]


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
