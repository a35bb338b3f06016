"""Exports a table to files: vectors as arrays beside their metadata, or all in Parquet.

The rows are streamed; memory holds the rows of one file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.curate.exchange import huggingface
from pipelines.curate.exchange.arrays import matrix
from pipelines.curate.exchange.fiftyone.samples import write_dataset
from pipelines.curate.exchange.folder import OutputFolder
from pipelines.curate.exchange.layout import IMAGE_PATH, PARQUET_PREFIX, array_name, metadata_name
from pipelines.rows.contract import FUSED_VECTOR, IMAGE_URI, INTERNAL
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.corpora import Corpora, read_corpora
from pipelines.tables.filters import check_filter
from pipelines.tables.promotion import answering
from pipelines.tables.provenance import Provenance

if TYPE_CHECKING:
    import lance

ExportFormat = Literal["npy", "parquet", "huggingface", "fiftyone"]
_WITH_PICTURES = ("huggingface", "fiftyone")
_BATCH_ROWS = 4_096
_ROWS_OF_A_FILE = 100_000
# With photographs as cameras take them this is a gigabyte; an Arrow array holds at most two.
_PICTURES_OF_A_FILE = 250


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The results of an export.

    Attributes:
        out: the folder.
        version: version of the table.
        rows: number of rows written.
        skipped: number of rows without one of the vectors, because arrays have no nulls. `fiftyone` has nulls, and
            takes all rows.
        files: number of files written.
        vectors: the vector columns, with their dimensions.
        missing: number of rows whose picture could not be read, if pictures are exported.
        renamed: column → name in the files, for columns whose name the format uses for something else.
        left_out: columns that the format cannot hold.
    """

    out: str
    version: int
    rows: int
    skipped: int
    files: int
    vectors: dict[str, int]
    missing: int = 0
    renamed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


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
        table: the table; if another table was promoted to its place, that one is exported.
        out: the folder, local or on S3; it must not hold files of an earlier export.
        format: `npy` (the layout of clip-retrieval), `parquet`, `huggingface` (which `datasets.load_dataset` reads), or
            `fiftyone` (which `fiftyone.Dataset.from_dir` reads).
        storage: how to reach `out`.
        vectors: vector columns; if none is named, all except the fused one, which can be made again from the others.
        where: SQL filter; None exports all rows.
        rows_per_file: rows per file, which are in memory together; by default 100,000, or 250 with pictures. `fiftyone`
            has one file, which is written row by row.
        pictures: for `huggingface` and `fiftyone`, how to reach the corpus's pictures, which are then exported too.
            With None they are not; `fiftyone` then opens them where they are.

    Raises:
        FileNotFoundError: the table does not exist.
        ModuleNotFoundError: the extra `huggingface` is not installed.
        ValueError: a column does not exist, the filter is invalid, the folder is not empty, or `fiftyone` could not
            open a picture where it is.
        OSError: a store cannot be read or written.
    """
    if pictures is not None and format not in _WITH_PICTURES:
        raise ValueError(f"pictures: not possible with format {format}; give {' or '.join(_WITH_PICTURES)}")
    if rows_per_file is not None and format == "fiftyone":
        raise ValueError(f"rows_per_file {rows_per_file}: format fiftyone has one file; leave it out")
    found, dataset = answering(table)
    provenance = Provenance.from_schema(dataset.schema, str(found))
    chosen = _choose(vectors, list(provenance.vector_columns()), found)
    if where is not None:
        check_filter(where, dataset)
    folder = OutputFolder(out, storage)
    folder.check_empty()
    rows = _Rows(name=found.name, dataset=dataset, provenance=provenance, vectors=chosen, where=where)
    if format == "fiftyone":
        return _export_samples(rows, folder, pictures)
    per_file = rows_per_file or (_ROWS_OF_A_FILE if pictures is None else _PICTURES_OF_A_FILE)
    return _export_files(rows, folder, format, per_file, pictures)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows to export: a table at its version, its vector columns, and a filter."""

    name: str
    dataset: lance.LanceDataset
    provenance: Provenance
    vectors: list[str]
    where: str | None

    @property
    def version(self) -> int:
        return int(self.dataset.version)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: self.dataset.schema.field(name).type.list_size for name in self.vectors}

    def count(self) -> int:
        return int(self.dataset.count_rows(self.where) if self.where is not None else self.dataset.count_rows())


def _export_files(
    source: _Rows, folder: OutputFolder, format: ExportFormat, rows_per_file: int, pictures: Storage | None
) -> Exported:
    """Write the rows into files of equal numbers of rows."""
    total = source.count()
    rows = files = missing = 0
    for number, part in enumerate(_parts(source, rows_per_file)):
        rows += part.num_rows
        if pictures is not None:
            part, unread = huggingface.add_pictures(part, pictures)
            missing += unread
        files += _write(folder, number, part, source.vectors, format)
    if format == "huggingface":
        text = huggingface.card(source.name, source.provenance, source.version, rows, source.sizes)
        folder.write(huggingface.CARD, text.encode())
        files += 1
    return Exported(
        out=folder.uri,
        version=source.version,
        rows=rows,
        skipped=total - rows,
        files=files,
        vectors=source.sizes,
        missing=missing,
    )


def _located(part: pa.Table, corpora: Corpora) -> pa.Table:
    """Rows that name their pictures where they are now."""
    if not corpora.moves() or IMAGE_URI not in part.column_names:
        return part
    uris = [corpora.locate(uri) if uri else uri for uri in part[IMAGE_URI].to_pylist()]
    index = part.column_names.index(IMAGE_URI)
    return part.set_column(index, part.schema.field(IMAGE_URI), pa.array(uris, part[IMAGE_URI].type))


def _export_samples(source: _Rows, folder: OutputFolder, pictures: Storage | None) -> Exported:
    """Write the rows as samples of FiftyOne, which opens the pictures where they are."""
    corpora = read_corpora(source.dataset)
    written = write_dataset(
        (_located(part, corpora) for part in _parts(source, _BATCH_ROWS, nulls=True)),
        folder,
        name=source.name,
        vectors=source.vectors,
        info={"table": source.name, "version": source.version, "encoder": source.provenance.encoder.name},
        pictures=pictures,
    )
    return Exported(
        out=folder.uri,
        version=source.version,
        rows=written.rows,
        skipped=source.count() - written.rows,
        files=written.files,
        vectors=source.sizes,
        missing=written.missing,
        renamed=written.renamed,
        left_out=written.left_out,
    )


def _choose(vectors: Sequence[str], there: list[str], table: TableRef) -> list[str]:
    """The vector columns asked for; all of them if none is named.

    Raises:
        ValueError: a column does not exist, or is the fused one.
    """
    for name in vectors:
        if name == FUSED_VECTOR:
            raise ValueError(
                f"table {table}: {FUSED_VECTOR} is made from the others and is not exported; make it again with "
                "isthmus fuse after the import"
            )
        if name not in there:
            raise ValueError(f"table {table}: has no vector column {name!r}; it has {', '.join(there)}")
    return list(vectors) or there


def _parts(source: _Rows, rows: int, *, nulls: bool = False) -> Iterator[pa.Table]:
    """Tables of `rows` rows, the last one smaller; an empty table gives one empty part.

    Args:
        source: the rows to export.
        rows: rows per part.
        nulls: whether to include rows that lack a vector.
    """
    schema, vectors = source.dataset.schema, source.vectors
    names = [name for name in schema.names if name not in INTERNAL]
    others = {name for name in schema.names if name.endswith("_vector") and name not in vectors}
    conditions = [f"({source.where})"] if source.where else []
    conditions += [] if nulls else [f"{name} IS NOT NULL" for name in vectors]
    scanner = source.dataset.scanner(
        columns=[name for name in names if name not in others],
        filter=" AND ".join(conditions) or None,
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


def _write(folder: OutputFolder, number: int, part: pa.Table, vectors: Sequence[str], format: ExportFormat) -> int:
    """Write one part; returns the number of files."""
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
    # Add the names that clip-retrieval knows, and keep ours.
    metadata = part.drop_columns(list(vectors))
    if IMAGE_URI in metadata.column_names and IMAGE_PATH not in metadata.column_names:
        metadata = metadata.append_column(IMAGE_PATH, metadata[IMAGE_URI])
    folder.write(metadata_name(number), _parquet(metadata))
    return len(vectors) + 1


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
