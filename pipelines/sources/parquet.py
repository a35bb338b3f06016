"""Parquet files: pictures as bytes, Hugging Face `{bytes, path}` structs, or paths; captions single or in lists."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.rows.contract import Columns
from pipelines.rows.types import holds, is_list_view
from pipelines.sources.base import CorpusShard
from pipelines.sources.file_names import has_bad_name
from pipelines.sources.listing import FileInfo, open_shard, relative_to, well_named
from pipelines.sources.locate import row_locator
from pipelines.sources.parquet_layout import Layout, make_layout, partition_schema, partition_values, unify
from pipelines.sources.records import (
    as_captions,
    as_key,
    bad_records,
    badly_named,
    is_corrupt,
    picture_fields,
    records_table,
)
from pipelines.sources.row_groups import cut_shards
from pipelines.store.retries import retry
from pipelines.store.storage import Storage

_BATCH_BYTES = 8 << 20
_MAX_BATCH_ROWS = 1024
_BUFFER_BYTES = 4 << 20
_FOOTER_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class _Footer:
    """The content of a file's footer: its schema, and (rows, compressed bytes) of each row group."""

    info: FileInfo
    schema: pa.Schema
    groups: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class ParquetSource:
    """A Parquet corpus. The footers stay on the driver; workers get only the layout."""

    root: str
    layout: Layout
    storage: Storage
    _footers: tuple[_Footer, ...] = field(default=(), repr=False, compare=False)
    _badly_named: tuple[FileInfo, ...] = field(default=(), repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_footers": (), "_badly_named": ()}

    def schema(self) -> pa.Schema:
        """The fields that pass through to the table."""
        return self.layout.passthrough

    def modalities(self) -> frozenset[str]:
        """The modalities that have a column."""
        layout = self.layout
        found = {"image": layout.image or layout.uri, "text": layout.caption}
        return frozenset(name for name, column in found.items() if column is not None)

    def shards(self) -> list[CorpusShard]:
        """Ranges of row groups, cut by the file alone. A file whose name is not UTF-8 is one record, a reject."""
        ranges = [shard for footer in self._footers for shard in cut_shards(footer.info, footer.groups)]
        unread = [CorpusShard(uri=info.uri, version=info.version, rows=1) for info in self._badly_named]
        return sorted([*ranges, *unread], key=lambda shard: (shard.uri, shard.start))

    def read(self, shard: CorpusShard) -> Iterator[pa.Table]:
        """The records of a range of row groups. The unreadable part of a row group becomes rejects.

        Raises:
            OSError: the file cannot be opened, changed after it was listed, or the store fails.
        """
        if has_bad_name(shard.version):
            yield badly_named(shard, self.schema())
            return
        with open_shard(shard, self.storage) as handle:
            file = pq.ParquetFile(handle, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
            first = shard.first_row
            for group in range(shard.start, shard.stop):
                yield from self._read_group(file, group, first, shard.uri)
                first += file.metadata.row_group(group).num_rows

    def _read_group(self, file: pq.ParquetFile, group: int, first: int, uri: str) -> Iterator[pa.Table]:
        rows = file.metadata.row_group(group).num_rows
        done = 0
        try:
            for batch in _batches(file, group):
                for table in self._fitting(pa.Table.from_batches([batch]), uri):
                    if isinstance(table, str):
                        yield bad_records(1, f"{uri}: row {first + done}: {table}", uri, self.schema())
                        done += 1
                    else:
                        yield self._records(table, uri, first + done)
                        done += table.num_rows
        except (pa.ArrowException, OSError) as error:
            if not is_corrupt(error):
                raise
            message = f"{uri}: row group {group} cannot be read from row {first + done} on: {str(error).strip()}"
            yield bad_records(rows - done, message, uri, self.schema())

    def _fitting(self, table: pa.Table, uri: str) -> Iterator[pa.Table | str]:
        """The rows in the corpus types, in order; an error message in place of a row that does not fit."""
        try:
            fitted = _cast(table, self.layout.types)
            fitted.validate(full=True)  # strings that are not UTF-8 break every later stage
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            if table.num_rows == 1:
                yield str(error)
                return
            half = table.num_rows // 2
            yield from self._fitting(table.slice(0, half), uri)
            yield from self._fitting(table.slice(half), uri)
            return
        parts = partition_values(relative_to(uri, self.root))
        for folder in self.layout.partitions:
            column = pa.array([parts.get(folder.name)] * table.num_rows, pa.string()).cast(folder.type)
            fitted = fitted.append_column(folder, column)
        yield fitted

    def _records(self, table: pa.Table, uri: str, first: int) -> pa.Table:
        layout = self.layout
        roles = (layout.key, layout.item, layout.caption, layout.uri)
        columns = [table[name].to_pylist() if name else [None] * table.num_rows for name in roles]
        images, inner_paths = self._pictures(table)
        is_there = images.is_valid().to_pylist()
        records, paths = [], []
        for i, (key, item, caption, path) in enumerate(zip(*columns, strict=True)):
            path = inner_paths[i] or path
            here = {"image_uri": row_locator(uri, first + i, layout.image)} if layout.image and is_there[i] else None
            picture = here or picture_fields(path, self.root)
            records.append({"key": as_key(key), "item": as_key(item), "captions": as_captions(caption)} | picture)
            paths.append(path)
        if layout.path_as is not None:
            table = table.drop_columns([layout.path_as]) if layout.path_as in table.column_names else table
            table = table.append_column(layout.path_as, pa.array(paths, pa.string()))
        return records_table(records, table.select(self.schema().names), images)

    def _pictures(self, table: pa.Table) -> tuple[pa.Array, list[str | None]]:
        """The bytes of each row's picture, not copied (null if there are none), and the path beside them."""
        paths: list[str | None] = [None] * table.num_rows
        if self.layout.image is None:
            return pa.nulls(table.num_rows, pa.large_binary()), paths
        column = table[self.layout.image]
        found = (
            column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        )  # combine_chunks copies even a single chunk
        if pa.types.is_struct(found.type):
            if found.type.get_field_index("path") >= 0:
                paths = pc.struct_field(found, "path").to_pylist()
            found = pc.struct_field(found, "bytes")
        return found.cast(pa.large_binary()), paths


def open_parquet(corpus: str, files: list[FileInfo], root: str, columns: Columns, storage: Storage) -> ParquetSource:
    """The source of a Parquet corpus; reads every footer once.

    Args:
        corpus: the corpus as the user named it, for messages.
        files: the Parquet files.
        root: the folder that relative picture paths start from.
        columns: the roles that the user named.
        storage: how to reach the files.

    Raises:
        ValueError: a footer is corrupt, the files do not agree, or a named column is missing.
    """
    unread = tuple(info for info in files if has_bad_name(info.version))
    files = well_named(files, corpus)
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = tuple(pool.map(lambda info: retry(lambda: _read_footer(info, storage), info.uri), files))
    schema = unify((footer.info.uri, footer.schema) for footer in footers)
    partitions = partition_schema(relative_to(info.uri, root) for info in files)
    layout = make_layout(schema, partitions, columns, corpus)
    return ParquetSource(root=root, layout=layout, storage=storage, _footers=footers, _badly_named=unread)


def _batches(file: pq.ParquetFile, group: int) -> Iterator[pa.RecordBatch]:
    """A row group in batches of a few MiB, assuming that each row has the row group's mean size."""
    meta = file.metadata.row_group(group)
    bytes_per_row = max(1, meta.total_byte_size // max(1, meta.num_rows))
    rows = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // bytes_per_row))
    yield from file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False)


def _read_footer(info: FileInfo, storage: Storage) -> _Footer:
    whole = CorpusShard(uri=info.uri, version=info.version)
    try:
        with open_shard(whole, storage) as handle:
            file = pq.ParquetFile(handle)
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            sizes = tuple((group.num_rows, _compressed_bytes(group)) for group in groups)
            return _Footer(info=info, schema=file.schema_arrow.remove_metadata(), groups=sizes)
    except (pa.ArrowException, OSError) as error:
        if not is_corrupt(error):
            raise
        why = str(error).strip()
        raise ValueError(
            f"{info.uri} is not a whole Parquet file ({why}); write it again, or take it out of the corpus"
        ) from error


def _compressed_bytes(group: pq.RowGroupMetaData) -> int:
    return sum(group.column(i).total_compressed_size for i in range(group.num_columns))


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns and types of `schema`; missing columns are null.

    Raises:
        pa.ArrowInvalid: a value does not fit.
    """
    there = set(table.column_names)
    columns = [_cast_column(table[f.name], f.type) if f.name in there else pa.nulls(len(table), f.type) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _cast_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    if column.type == kind:
        return column
    if holds(column.type, is_list_view):  # Arrow's own cast loses their items
        return pa.array(column.to_pylist(), kind)
    try:
        return column.cast(kind)
    except pa.ArrowNotImplementedError:  # an extension, or a dictionary, inside a nested type
        return pa.array(column.to_pylist(), kind)
