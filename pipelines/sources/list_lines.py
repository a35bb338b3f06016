"""The records of CSV, TSV and JSONL files, one by one, each with the number of bytes that it took."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import IO

from pipelines.sources.file_names import is_utf8
from pipelines.sources.listing import FileInfo
from pipelines.sources.row_layout import Row

# An unclosed quote swallows the lines after it, up to this length, and then costs one record.
_MAX_CELL_CHARS = 1 << 16


class Lines:
    """The lines of a file as text, with a count of the bytes read. Bytes that are not UTF-8 become surrogates."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.taken = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._handle:
            self.taken += len(line)
            yield line.decode("utf-8", "surrogateescape")


def read_rows(handle: IO[bytes], info: FileInfo, names: tuple[str, ...]) -> Iterator[tuple[Row, int]]:
    """Each record, and the number of bytes that it took (including blank lines before it).

    Args:
        handle: the file, positioned at the beginning of a record.
        info: the file's entry; its suffix decides the format.
        names: the columns of a CSV or TSV.
    """
    lines = Lines(handle)
    records = _json_rows(lines) if info.suffix == ".jsonl" else _cell_rows(lines, info, names)
    before = 0
    for row in records:
        yield row, lines.taken - before
        before = lines.taken


def _json_rows(lines: Lines) -> Iterator[Row]:
    for line in lines:
        text = line.strip().removeprefix("\ufeff")
        if not text:
            continue
        try:
            text.encode()
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise ValueError(f"a {type(fields).__name__}, not an object")
            yield Row(fields=fields)
        except (ValueError, RecursionError) as error:
            yield Row(fields={}, error=f"the line {text[:80]!r} cannot be read: {error}")


def _reader(lines: Lines, info: FileInfo) -> Iterator[list[str] | str]:
    """The cells of each record; an error message in place of a record that cannot be parsed."""
    csv.field_size_limit(_MAX_CELL_CHARS)
    reader = csv.reader(iter(lines), delimiter="\t" if info.suffix == ".tsv" else ",")
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {reader.line_num} of its range cannot be read: {error}"


def _cell_rows(lines: Lines, info: FileInfo, names: tuple[str, ...]) -> Iterator[Row]:
    for cells in _reader(lines, info):
        if isinstance(cells, str):
            yield Row(fields={}, error=cells)
        elif len(cells) != len(names) and cells:
            yield Row(fields={}, error=f"has {len(cells)} cells where there are {len(names)} columns: {cells!r:.80}")
        elif cells:
            bad = next((cell for cell in cells if not is_utf8(cell)), None)
            yield Row(fields=dict(zip(names, cells, strict=True)) if bad is None else {}, error=_not_utf8(bad))


def read_header(handle: IO[bytes], info: FileInfo) -> tuple[tuple[str, ...], int]:
    """The column names, and the byte offset of the first record; no names if the file has no line.

    Raises:
        ValueError: the header names a column twice or is not UTF-8.
    """
    lines = Lines(handle)
    for cells in _reader(lines, info):
        if isinstance(cells, str) or not cells:
            continue
        names = tuple(name.removeprefix("\ufeff").strip() for name in cells)
        if len(set(names)) < len(names) or not all(map(is_utf8, names)):
            raise ValueError(f"corpus {info.uri}: the first line must name each column once, in UTF-8; it is {names}")
        return names, lines.taken
    return (), 0


def _not_utf8(cell: str | None) -> str | None:
    return None if cell is None else f"the cell {cell[:80]!r} is not UTF-8"
