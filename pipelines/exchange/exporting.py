"""A table as files: vectors as arrays beside their metadata, or all in Parquet. Streamed, one file's rows in memory."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contract import IMAGE_URI, INTERNAL
from pipelines.exchange import huggingface
from pipelines.exchange.layout import IMAGE_PATH, PARQUET_PREFIX, array_name, metadata_name
from pipelines.filters import check_filter
from pipelines.provenance import Provenance
from pipelines.retries import retry
from pipelines.retrieval.publishing import answering
from pipelines.storage import Storage, TableRef, absolute, is_remote

if TYPE_CHECKING:
    import lance

ExportFormat = Literal["npy", "parquet", "huggingface"]
_BATCH_ROWS = 4_096
_ROWS_OF_A_FILE = 100_000
# Of photographs as cameras take them that is a gigabyte; Arrow's arrays end at two.
_PICTURES_OF_A_FILE = 250


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        out: the folder.
        version: of the table.
        rows: written.
        skipped: rows that lack one of the vectors; arrays have no nulls.
        files: written.
        vectors: the vector columns, with their dimensions.
        missing: pictures that could not be read, where pictures were asked for.
    """

    out: str
    version: int
    rows: int
    skipped: int
    files: int
    vectors: dict[str, int]
    missing: int = 0


def export_table(
    table: TableRef,
    out: str,
    *,
    format: ExportFormat,
    storage: Storage,
    vectors: Sequence[str] = (),
    where: str | None = None,
    rows_per_file: int | None = None,
    pictures: Storage | None = None,
) -> Exported:
    """Write a table's rows into an empty folder.

    Args:
        table: the table; one that was promoted to its place is exported.
        out: the folder, local or on S3; files of an earlier export may not be in it.
        format: `npy` (the layout of clip-retrieval), `parquet`, or `huggingface` (what `datasets.load_dataset` reads).
        storage: how to reach `out`.
        vectors: vector columns; all of them if none is named.
        where: an SQL filter.
        rows_per_file: rows of a file, which are in memory together; by default 100,000, with pictures 250.
        pictures: for `huggingface`, how to reach the corpus, whose pictures then come along; None leaves them out.

    Raises:
        FileNotFoundError: there is no such table.
        ModuleNotFoundError: the extra `huggingface` is not installed.
        ValueError: a column is not there, the filter is none, or the folder is not empty.
        OSError: a store fails.
    """
    if pictures is not None and format != "huggingface":
        raise ValueError(f"pictures: go with format huggingface alone, not with {format}")
    found, dataset = answering(table)
    provenance = Provenance.from_schema(dataset.schema, str(found))
    chosen = _choose(vectors, list(provenance.vector_columns()), found)
    if where is not None:
        check_filter(where, dataset)
    per_file = rows_per_file or (_ROWS_OF_A_FILE if pictures is None else _PICTURES_OF_A_FILE)
    folder = _Folder(absolute(out), storage)
    folder.check_empty()
    total = dataset.count_rows(where) if where is not None else dataset.count_rows()
    sizes = {name: dataset.schema.field(name).type.list_size for name in chosen}
    rows = files = missing = 0
    for number, part in enumerate(_parts(dataset, chosen, where, per_file)):
        rows += part.num_rows
        if pictures is not None:
            part, unread = huggingface.add_pictures(part, pictures)
            missing += unread
        files += _write(folder, number, part, chosen, format)
    if format == "huggingface":
        text = huggingface.card(found.name, provenance, int(dataset.version), rows, sizes)
        folder.write(huggingface.CARD, text.encode())
        files += 1
    return Exported(
        out=folder.uri,
        version=int(dataset.version),
        rows=rows,
        skipped=total - rows,
        files=files,
        vectors=sizes,
        missing=missing,
    )


def _choose(vectors: Sequence[str], there: list[str], table: TableRef) -> list[str]:
    """The vector columns asked for, all where none is.

    Raises:
        ValueError: one is not there.
    """
    for name in vectors:
        if name not in there:
            raise ValueError(f"table {table}: has no vector column {name!r}; it has {', '.join(there)}")
    return list(vectors) or there


def _parts(dataset: lance.LanceDataset, vectors: Sequence[str], where: str | None, rows: int) -> Iterator[pa.Table]:
    """Tables of `rows` rows, the last one smaller; of an empty table one that is empty."""
    names = [name for name in dataset.schema.names if name not in INTERNAL]
    others = {name for name in dataset.schema.names if name.endswith("_vector") and name not in vectors}
    conditions = [f"({where})"] if where else []
    conditions += [f"{name} IS NOT NULL" for name in vectors]
    scanner = dataset.scanner(
        columns=[name for name in names if name not in others],
        filter=" AND ".join(conditions),
        batch_size=_BATCH_ROWS,
        scan_in_order=True,
    )
    held: list[pa.RecordBatch] = []
    count, written = 0, False
    for batch in scanner.to_batches():
        while batch.num_rows:
            take = min(batch.num_rows, rows - count)
            held.append(batch.slice(0, take))
            count, batch = count + take, batch.slice(take)
            if count == rows:
                yield pa.Table.from_batches(held)
                held, count, written = [], 0, True
    if held or not written:
        yield pa.Table.from_batches(held, schema=held[0].schema if held else scanner.projected_schema)


def _write(folder: _Folder, number: int, part: pa.Table, vectors: Sequence[str], format: ExportFormat) -> int:
    """Write one part; how many files."""
    if format == "parquet":
        folder.write(f"{PARQUET_PREFIX}_{number:04d}.parquet", _parquet(part))
        return 1
    if format == "huggingface":
        folder.write(huggingface.file_name(number), _parquet(huggingface.with_features(part)))
        return 1
    for name in vectors:
        buffer = io.BytesIO()
        np.save(buffer, matrix(part[name]))
        folder.write(array_name(name, number), buffer.getvalue())
    # The names that clip-retrieval knows; ours stay beside them.
    metadata = part.drop_columns(list(vectors))
    if IMAGE_URI in metadata.column_names and IMAGE_PATH not in metadata.column_names:
        metadata = metadata.append_column(IMAGE_PATH, metadata[IMAGE_URI])
    folder.write(metadata_name(number), _parquet(metadata))
    return len(vectors) + 1


def matrix(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Vectors of a column without nulls as (rows, dim), in their own type."""
    whole = column.combine_chunks()
    return np.asarray(whole.flatten()).reshape(len(whole), column.type.list_size)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


class _Folder:
    """A folder to write to, local or remote."""

    def __init__(self, uri: str, storage: Storage) -> None:
        self.uri = uri
        self._files = storage.filesystem(uri)

    def check_empty(self) -> None:
        found = retry(lambda: self._files.find(self.uri, maxdepth=2), self.uri)
        if found:
            raise ValueError(f"out {self.uri}: holds files already ({found[0]}); give an empty folder")

    def write(self, name: str, data: bytes) -> None:
        path = f"{self.uri}/{name}"
        if not is_remote(self.uri):
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        retry(lambda: self._files.pipe_file(path, data), self.uri)
