"""Parquet files: pictures as bytes, as Hugging Face `{bytes, path}` structs, or by path; captions single or many."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contract import Columns
from pipelines.sources.base import Shard
from pipelines.sources.listing import FileInfo, list_files, relative_to
from pipelines.sources.locate import row_locator
from pipelines.sources.parquet_layout import Layout, make_layout, unify
from pipelines.sources.records import as_captions, as_key, bad_records, records_table, resolve_picture
from pipelines.storage import Storage

MAX_SHARD_BYTES = 32 << 20
MAX_SHARD_ROWS = 16_384
MIN_SHARDS = 16
_BATCH_BYTES = 8 << 20
_MAX_BATCH_ROWS = 1024
_FOOTER_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class _Footer:
    """What a file's footer says: its schema, and (rows, bytes) of each row group."""

    info: FileInfo
    schema: pa.Schema
    groups: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class ParquetSource:
    """A Parquet corpus. The footers stay on the driver: workers get the layout alone."""

    root: str
    layout: Layout
    storage: Storage
    _footers: tuple[_Footer, ...] = field(default=(), repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_footers": ()}

    def schema(self) -> pa.Schema:
        """Fields that pass through."""
        return self.layout.passthrough

    def modalities(self) -> frozenset[str]:
        """What there are columns for."""
        found = {"image": self.layout.image_kind != "none", "text": self.layout.caption is not None}
        return frozenset(name for name, there in found.items() if there)

    def shards(self) -> list[Shard]:
        """Ranges of row groups, cut by the file alone."""
        return [shard for footer in self._footers for shard in cut_shards(footer.info, footer.groups)]

    def read(self, shard: Shard) -> Iterator[pa.Table]:
        """The records of a range of row groups; a row group that cannot be read gives rejects."""
        with self.storage.filesystem(shard.uri).open(shard.uri, "rb") as handle:
            file = pq.ParquetFile(handle)
            index = shard.first_row
            for group in range(shard.start, shard.stop):
                rows = file.metadata.row_group(group).num_rows
                done = 0
                try:
                    for batch in self._batches(file, group):
                        yield self._records(batch, shard.uri, index + done)
                        done += batch.num_rows
                except (pa.ArrowException, OSError, ValueError) as error:
                    message = f"{shard.uri}: row group {group} cannot be read: {error}"
                    yield bad_records(rows - done, message, shard.uri, self.schema())
                index += rows

    def _batches(self, file: pq.ParquetFile, group: int) -> Iterator[pa.Table]:
        there = [name for name in self.layout.physical if name in file.schema_arrow.names]
        meta = file.metadata.row_group(group)
        bytes_per_row = max(1, meta.total_byte_size // max(1, meta.num_rows))
        rows = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // bytes_per_row))
        for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=there, use_threads=False):
            yield pa.Table.from_batches([batch])

    def _records(self, table: pa.Table, uri: str, first: int) -> pa.Table:
        layout = self.layout
        values = {name: _values(table, name) for name in (layout.key, layout.item, layout.caption, layout.image)}
        parts = dict(_partition_values(relative_to(uri, self.root)))
        records, paths = [], []
        for i in range(table.num_rows):
            record = self._picture(values[layout.image][i], uri, first + i)
            paths.append(record.pop("path", None))
            record["key"] = as_key(values[layout.key][i] if layout.key not in parts else parts[layout.key])
            record["item"] = as_key(values[layout.item][i])
            record["captions"] = as_captions(values[layout.caption][i])
            records.append(record)
        return records_table(records, self._passthrough(table, parts, paths))

    def _picture(self, value: Any, uri: str, index: int) -> dict[str, Any]:
        """The picture's fields of a record."""
        kind, column = self.layout.image_kind, self.layout.image
        path = value.get("path") if isinstance(value, dict) else (value if kind == "uri" else None)
        data = value.get("bytes") if isinstance(value, dict) else (value if kind == "bytes" else None)
        record: dict[str, Any] = {"image": data, "path": path}
        if data is not None and column is not None:
            record["image_uri"] = row_locator(uri, index, column)
        elif path:
            try:
                record["image_uri"] = resolve_picture(path, self.root)
            except ValueError as error:
                record |= {"image_uri": path, "reason": "bad_record", "message": str(error)}
        return record

    def _passthrough(self, table: pa.Table, parts: dict[str, str], paths: list[str | None]) -> pa.Table:
        columns = []
        for field_ in self.schema():
            if field_.name in table.column_names:
                columns.append(_cast(table[field_.name], field_.type))
            elif field_.name in parts:
                columns.append(pa.array([parts[field_.name]] * table.num_rows).cast(field_.type))
            elif field_.name == "image_path" and field_.name not in self.layout.physical:
                columns.append(pa.array(paths, pa.string()))
            else:
                columns.append(pa.nulls(table.num_rows, field_.type))
        return pa.table(columns, schema=self.schema()) if columns else pa.table({"_": [0] * table.num_rows}).select([])


def open_parquet(corpus: str, files: list[FileInfo], root: str, columns: Columns, storage: Storage) -> ParquetSource:
    """The source of a Parquet corpus; reads every footer once.

    Args:
        corpus: as the user named it, for messages.
        files: its Parquet files.
        root: the folder that relative picture paths start from.
        columns: roles that were named.
        storage: how to reach it.

    Raises:
        ValueError: a footer is corrupt, the files do not agree, or a named column is missing.
    """
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = tuple(pool.map(lambda info: _read_footer(info, storage), files))
    schema = unify([(footer.info.uri, footer.schema) for footer in footers])
    partitions = _partition_schema([relative_to(info.uri, root) for info in files])
    layout = make_layout(schema, partitions, columns, corpus)
    return ParquetSource(root=root, layout=layout, storage=storage, _footers=footers)


def cut_shards(info: FileInfo, groups: tuple[tuple[int, int], ...]) -> list[Shard]:
    """Contiguous row groups packed into shards, bounded in bytes and rows, and at least 16 where the file has as
    many row groups: one file of many small row groups must still be read by many tasks.

    Args:
        info: the file.
        groups: (rows, bytes) of each row group.
    """
    groups_each = max(1, math.floor(len(groups) / MIN_SHARDS))
    shards: list[Shard] = []
    start = first = 0
    rows = size = 0
    for i, (group_rows, group_bytes) in enumerate(groups):
        full = i - start >= groups_each or size + group_bytes > MAX_SHARD_BYTES or rows + group_rows > MAX_SHARD_ROWS
        if i > start and full:
            shards.append(_shard(info, start, i, first, rows, size))
            start, first, rows, size = i, first + rows, 0, 0
        rows, size = rows + group_rows, size + group_bytes
    if rows:
        shards.append(_shard(info, start, len(groups), first, rows, size))
    return [shard for shard in shards if shard.rows]


def _shard(info: FileInfo, start: int, stop: int, first: int, rows: int, size: int) -> Shard:
    return Shard(
        uri=info.uri, version=info.version, start=start, stop=stop, first_row=first, rows=rows, size_bytes=size
    )


def _read_footer(info: FileInfo, storage: Storage) -> _Footer:
    try:
        with storage.filesystem(info.uri).open(info.uri, "rb") as handle:
            file = pq.ParquetFile(handle)
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            sizes = tuple((group.num_rows, group.total_byte_size) for group in groups)
            return _Footer(info=info, schema=file.schema_arrow.remove_metadata(), groups=sizes)
    except pa.ArrowException as error:
        raise ValueError(
            f"corpus: {info.uri} is not a whole Parquet file ({error}); write it again, or take it out"
        ) from error


def _partition_values(relative: str) -> Iterator[tuple[str, str]]:
    for part in relative.split("/")[:-1]:
        name, sep, value = part.partition("=")
        if sep:
            yield name, value


def _partition_schema(relatives: list[str]) -> pa.Schema:
    """Fields of the `key=value` folders: int64 where every value is a whole number, else strings."""
    values: dict[str, list[str]] = {}
    for relative in relatives:
        for name, value in _partition_values(relative):
            values.setdefault(name, []).append(value)
    whole = {name: all(v.lstrip("-").isdigit() for v in vs) for name, vs in values.items()}
    return pa.schema([pa.field(name, pa.int64() if whole[name] else pa.string()) for name in values])


def _values(table: pa.Table, name: str | None) -> list[Any]:
    if name is None or name not in table.column_names:
        return [None] * table.num_rows
    return list(table[name].to_pylist())


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    return column if column.type == kind else column.cast(kind)


def parquet_files(corpus: str, storage: Storage) -> list[FileInfo]:
    """The Parquet files of a corpus."""
    return [info for info in list_files(corpus, storage) if info.suffix in (".parquet", ".pq")]
