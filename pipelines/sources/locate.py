"""Reads a picture's bytes by its image URI.

Besides paths and `s3://` URIs there are two locators for pictures inside other files:
`<file>#row=<index>&column=<name>` (a row of a Parquet file) and `<tar>#offset=<byte>&size=<bytes>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, unquote

import pyarrow.parquet as pq

from pipelines.store.retries import retry
from pipelines.store.storage import Storage, is_remote

# Matched only at the end: file names may contain a `#` too.
_ROW = re.compile(r"(?s)(.+)#row=(\d+)&column=([^#&]*)")
_RANGE = re.compile(r"(?s)(.+)#offset=(\d+)&size=(\d+)")
_ROWS_AT_ONCE = 64


def row_locator(uri: str, row: int, column: str) -> str:
    """The locator of a picture in a row of a Parquet file."""
    return f"{uri}#row={row}&column={quote(column, safe='')}"


def range_locator(uri: str, offset: int, size: int) -> str:
    """The locator of a picture in a byte range of a file."""
    return f"{uri}#offset={offset}&size={size}"


def file_of(image_uri: str) -> str:
    """The file that is the picture, or contains it."""
    match = _ROW.fullmatch(image_uri) or _RANGE.fullmatch(image_uri)
    return match[1] if match else image_uri


def range_end(image_uri: str) -> int | None:
    """The offset in its file at which the picture of a `range_locator` ends; None for other URIs."""
    match = _RANGE.fullmatch(image_uri)
    return int(match[2]) + int(match[3]) if match else None


def read_image(image_uri: str, storage: Storage) -> bytes:
    """The bytes of a picture, also if its corpus has moved. A request to a store is retried if it fails.

    Raises:
        FileNotFoundError: the file, or the picture in it, is missing.
        PermissionError: the store refuses the credentials.
        ValueError: the URI has an unsupported scheme.
        ConnectionError: the store failed as often as the retry policy allows.
        OSError: the disk cannot be read.
    """
    uri = storage.locate(image_uri)
    return retry(lambda: _read_once(uri, storage), uri)


def _read_once(image_uri: str, storage: Storage) -> bytes:
    if row := _ROW.fullmatch(image_uri):
        return _read_row(row[1], int(row[2]), unquote(row[3]), storage)
    if part := _RANGE.fullmatch(image_uri):
        return _read_range(part[1], int(part[2]), int(part[3]), storage)
    if "://" in image_uri and not image_uri.startswith("s3://"):
        raise ValueError(f"scheme {image_uri.split('://')[0]!r} is not fetched; download the pictures first")
    # Without the limit s3fs asks for the size first: two requests per picture.
    more = {"max_concurrency": 1} if is_remote(image_uri) else {}
    return bytes(storage.filesystem(image_uri).cat_file(image_uri, **more))


def read_images(uris: Sequence[str], storage: Storage, *, threads: int = 8) -> list[bytes | Exception]:
    """The bytes of several pictures, in order; an exception in place of each picture that could not be read."""

    def attempt(uri: str) -> bytes | Exception:
        try:
            return read_image(uri, storage)
        except Exception as error:
            return error

    if len(uris) <= 1:
        return [attempt(uri) for uri in uris]
    with ThreadPoolExecutor(min(threads, len(uris))) as pool:
        return list(pool.map(attempt, uris))


def _read_range(uri: str, offset: int, size: int, storage: Storage) -> bytes:
    data = bytes(storage.filesystem(uri).cat_file(uri, start=offset, end=offset + size)) if size else b""
    if len(data) != size:
        raise FileNotFoundError(f"{uri}: ends before byte {offset + size}; it is not the file that was embedded")
    return data


def _read_row(uri: str, row: int, column: str, storage: Storage) -> bytes:
    """The picture in a row, found by decoding its row group up to that row."""
    with storage.filesystem(uri).open(uri, "rb") as handle:
        file = pq.ParquetFile(handle, buffer_size=1 << 20)
        group, left = _find_row(file, row)
        if group is None or column not in file.schema_arrow.names:
            raise FileNotFoundError(f"{uri}: there is no row {row} with a column {column!r}")
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
            if left < batch.num_rows:
                value = batch.column(column)[left].as_py()
                break
            left -= batch.num_rows
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        raise FileNotFoundError(f"{uri}: row {row} holds no picture")
    return bytes(data)


def _find_row(file: pq.ParquetFile, row: int) -> tuple[int | None, int]:
    """The row group that holds a row, and the row's index in it; (None, …) if the file has fewer rows."""
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            return group, row
        row -= rows
    return None, row
