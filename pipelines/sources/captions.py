"""Lists of pictures and captions in CSV, TSV or JSONL files.

The driver reads the file once, as a stream, to find the types of the columns and where each range of 1,024 records
begins. A worker then reads only the bytes of its range. The first line of a CSV or TSV names the columns. A cell such
as `00012` stays text, because as a number it would no longer name its picture.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any

import pyarrow as pa

from pipelines.rows.contract import Columns
from pipelines.sources.base import CorpusShard, Source
from pipelines.sources.empty import EmptySource
from pipelines.sources.list_lines import read_header, read_rows
from pipelines.sources.listing import FileInfo, open_shard
from pipelines.sources.row_layout import Row, RowLayout, choose_roles, find_root, make_row_layout
from pipelines.sources.values import TypeTally
from pipelines.store.storage import Storage

RECORDS_A_SHARD = 1_024
_READ_AHEAD_BYTES = 4 << 20
_PROBE_RECORDS = 20
_INT = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_BOOLS = {"true": True, "True": True, "false": False, "False": False}


@dataclass(frozen=True, kw_only=True)
class CaptionsSource:
    """A corpus in one list. A shard is a range of its bytes."""

    info: FileInfo
    names: tuple[str, ...]
    layout: RowLayout
    storage: Storage
    _shards: tuple[CorpusShard, ...] = field(default=(), repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": ()}

    def schema(self) -> pa.Schema:
        """The fields that pass through to the table."""
        return self.layout.passthrough

    def adopting(self, table: pa.Schema) -> CaptionsSource:
        """The same corpus with a table's types; see `adopted`."""
        return replace(self, layout=self.layout.adopting(table))

    def modalities(self) -> frozenset[str]:
        """The modalities that have a column."""
        return self.layout.modalities()

    def shards(self) -> list[CorpusShard]:
        """Ranges of bytes with up to 1,024 records each."""
        return list(self._shards)

    def read(self, shard: CorpusShard) -> Iterator[pa.Table]:
        """The records of a range.

        Raises:
            OSError: the file cannot be opened, changed after it was listed, or the store fails.
        """
        with open_shard(shard, self.storage) as handle:
            handle.seek(shard.start)
            data = handle.read(shard.stop - shard.start)
        rows = [row for row, _ in read_rows(io.BytesIO(data), self.info, self.names)]
        yield self.layout.table([self._typed(row) for row in rows], shard.uri)

    def _typed(self, row: Row) -> Row:
        """The cells of a CSV or TSV as values, except in string columns."""
        if self.info.suffix == ".jsonl":
            return row
        others = {f.name for f in self.layout.passthrough if not pa.types.is_string(f.type)}
        fields = {name: cell_value(cell) if name in others else cell for name, cell in row.fields.items()}
        return Row(fields=fields, error=row.error)


def open_captions(corpus: str, info: FileInfo, columns: Columns, storage: Storage) -> Source:
    """The source of a list; reads the list once.

    Args:
        corpus: the corpus as the user named it, for messages.
        info: the list.
        columns: the roles that the user named.
        storage: how to reach it.

    Raises:
        ValueError: the list has no such column, or names neither pictures nor captions.
    """
    scan = _Scan(info)
    with open_shard(
        CorpusShard(uri=info.uri, version=info.version), storage, cache_type="readahead", block_size=_READ_AHEAD_BYTES
    ) as handle:
        scan.run(io.BufferedReader(handle, 1 << 20))  # type: ignore[type-var]
    if not scan.shards:
        return EmptySource(files=(info,))
    names = list(scan.names) or scan.tally.names()
    roles = choose_roles(names, columns, corpus)
    folder = posixpath.dirname(info.uri)
    probes = [str(row.get(roles.uri or "") or "") for row in scan.probes]
    root = find_root(probes, (folder, posixpath.join(folder, "images")), storage)
    layout = make_row_layout(scan.tally.schema(), roles, root, corpus)
    return CaptionsSource(info=info, names=scan.names, layout=layout, storage=storage, _shards=tuple(scan.shards))


def cell_value(cell: str | None) -> Any:
    """The value of a cell, in the narrowest type that represents it without loss.

    >>> [cell_value(cell) for cell in ("12", "1.5", "true", "", "007", "cat")]
    [12, 1.5, True, None, '007', 'cat']
    """
    if not cell:
        return None
    if _INT.fullmatch(cell):
        return int(cell)
    if _FLOAT.fullmatch(cell):
        return float(cell)
    return _BOOLS.get(cell, cell)


class _Scan:
    """What the driver learns from one pass over a list.

    Attributes:
        names: columns of a CSV or TSV; empty for JSONL.
        tally: the kinds of values in each field.
        shards: the ranges of records.
        probes: the first records, to find out where the pictures are.
    """

    def __init__(self, info: FileInfo) -> None:
        self.names: tuple[str, ...] = ()
        self.tally = TypeTally()
        self.shards: list[CorpusShard] = []
        self.probes: list[dict[str, Any]] = []
        self._info = info
        self._texts: set[str] = set()

    def run(self, handle: IO[bytes]) -> None:
        """Read the list from its beginning."""
        start = first = rows = end = 0
        if self._info.suffix != ".jsonl":
            self.names, start = read_header(handle, self._info)
            self.tally.add(dict.fromkeys(self.names))
        for row, size in read_rows(handle, self._info, self.names):
            if rows == RECORDS_A_SHARD:
                self._cut(start, end, first, rows)
                start, first, rows = end, first + rows, 0
            self._see(row)
            rows, end = rows + 1, (end or start) + size
        if rows:
            self._cut(start, end, first, rows)

    def _cut(self, start: int, end: int, first: int, rows: int) -> None:
        self.shards.append(
            CorpusShard(
                uri=self._info.uri,
                version=self._info.version,
                start=start,
                stop=end,
                first_row=first,
                rows=rows,
                size_bytes=end - start,
            )
        )

    def _see(self, row: Row) -> None:
        if row.error is not None:
            return
        if len(self.probes) < _PROBE_RECORDS:
            self.probes.append(dict(row.fields))
        if self._info.suffix == ".jsonl":
            self.tally.add(row.fields)
            return
        values = {name: cell_value(cell) for name, cell in row.fields.items() if name not in self._texts}
        self.tally.add(values)
        self._texts |= {name for name, value in values.items() if isinstance(value, str)}
