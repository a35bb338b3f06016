"""Decodes the pictures of a table's rows for a model that reads them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from encoders.images import ImageError, open_image
from pipelines.rows.contract import IMAGE_URI, THUMBNAIL
from pipelines.sources.locate import read_images
from pipelines.store.storage import Storage

if TYPE_CHECKING:
    from PIL.Image import Image

# Cross-encoders read 288 to 384 pixels; a JPEG need not be decoded at much more.
_SIDE = 384

# Reads the picture bytes of rows that have `IMAGE_URI` and perhaps `THUMBNAIL`; None or an error for missing pictures.
ReadPictures = Callable[[pa.Table], Sequence[bytes | Exception | None]]


def reader(storage: Storage) -> ReadPictures:
    """A function that reads pictures from the corpus itself."""

    def read(rows: pa.Table) -> list[bytes | Exception | None]:
        uris = rows[IMAGE_URI].to_pylist()
        wanted = list(dict.fromkeys(uri for uri in uris if uri))
        found = dict(zip(wanted, read_images(wanted, storage), strict=True))
        return [found.get(uri) for uri in uris]

    return read


def decoded(rows: pa.Table, read: ReadPictures) -> list[Image | None]:
    """The rows' pictures, RGB. A picture that cannot be read or decoded is replaced by its thumbnail, or else is None.

    Args:
        rows: rows with `IMAGE_URI`, and with `THUMBNAIL` if the table has that column.
        read: reads the pictures' bytes.
    """
    small = rows[THUMBNAIL].to_pylist() if THUMBNAIL in rows.column_names else [None] * rows.num_rows
    return [_first(data, thumbnail) for data, thumbnail in zip(read(rows), small, strict=True)]


def _first(*tries: bytes | Exception | None) -> Image | None:
    for data in tries:
        if isinstance(data, bytes):
            try:
                return open_image(data, target=(_SIDE, _SIDE))
            except ImageError:
                continue
    return None
