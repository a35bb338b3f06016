"""From an image URI to the picture's bytes.

Besides paths and `s3://` URIs there are two locators for pictures inside other files:
`<file>#row=<index>&column=<name>` (a row of a Parquet file) and `<tar>#offset=<byte>&size=<bytes>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, quote

import pyarrow.parquet as pq

from pipelines.storage import Storage


def row_locator(uri: str, row: int, column: str) -> str:
    """The locator of a picture in a row of a Parquet file."""
    return f"{uri}#row={row}&column={quote(column)}"


def range_locator(uri: str, offset: int, size: int) -> str:
    """The locator of a picture in a byte range of a file."""
    return f"{uri}#offset={offset}&size={size}"


def read_image(image_uri: str, storage: Storage) -> bytes:
    """The bytes of a picture.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: a scheme or a locator that is not supported.
        OSError: the store cannot be read.
    """
    uri, _, fragment = image_uri.partition("#")
    if fragment.startswith(("row=", "offset=")):
        fields = {name: values[0] for name, values in parse_qs(fragment).items()}
        if "row" in fields:
            return _read_row(uri, int(fields["row"]), fields["column"], storage)
        offset, size = int(fields["offset"]), int(fields["size"])
        return bytes(storage.filesystem(uri).cat_file(uri, start=offset, end=offset + size))
    if "://" in image_uri and not image_uri.startswith("s3://"):
        raise ValueError(f"scheme {image_uri.split('://')[0]!r} is not fetched; download the pictures first")
    return bytes(storage.filesystem(image_uri).cat_file(image_uri))


def read_images(uris: Sequence[str], storage: Storage, *, threads: int = 8) -> list[bytes | Exception]:
    """The bytes of several pictures, in order; an exception stands where a picture could not be read."""

    def attempt(uri: str) -> bytes | Exception:
        try:
            return read_image(uri, storage)
        except Exception as error:
            return error

    if len(uris) <= 1:
        return [attempt(uri) for uri in uris]
    with ThreadPoolExecutor(min(threads, len(uris))) as pool:
        return list(pool.map(attempt, uris))


def _read_row(uri: str, row: int, column: str, storage: Storage) -> bytes:
    with storage.filesystem(uri).open(uri, "rb") as handle:
        file = pq.ParquetFile(handle)
        group = 0
        while row >= (rows := file.metadata.row_group(group).num_rows):
            row -= rows
            group += 1
        value = file.read_row_group(group, columns=[column])[column][row].as_py()
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        raise FileNotFoundError(f"{uri}: row {row} of row group {group} holds no picture")
    return bytes(data)
