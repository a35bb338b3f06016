"""Imports embeddings of another tool as a table that can be searched, after checking which encoder made them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from encoders.protocol import EncoderCard, EncoderOptions
from pipelines.curate.exchange.arrays import matrix
from pipelines.curate.exchange.layout import FOLDERS, IMAGE_PATH, METADATA, PARQUET_PREFIX
from pipelines.rows.contract import (
    CAPTION,
    IMAGE_URI,
    IMAGE_VECTOR,
    ITEM_ID,
    MODALITIES,
    POSITION,
    RESERVED,
    ROW_ID,
    SHARD,
    vector_type,
)
from pipelines.sources.locate import read_images
from pipelines.store.retries import retry
from pipelines.store.storage import Storage, TableRef, absolute
from pipelines.tables.opening import open_dataset, translate
from pipelines.tables.provenance import Provenance, library_versions

_CHECKED = 8
# Other preprocessing or precision keeps the cosine above this; below it, the encoder is another one.
_SAME_COSINE = 0.9


class ForeignVectorsError(ValueError):
    """The vectors were not made by the encoder that was named."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The results of an import.

    Attributes:
        table: the new table.
        rows: number of its rows.
        vectors: the vector columns, with their dimensions.
        checked: for each column, the median cosine of some vectors to those that the encoder gives for the same
            captions or pictures; None if none of them could be read.
    """

    table: str
    rows: int
    vectors: dict[str, int]
    checked: dict[str, float | None]


@dataclass(frozen=True)
class _Part:
    """Files that hold the same rows: arrays by vector column, and metadata; or one Parquet file with everything."""

    arrays: dict[str, str]
    metadata: str


def import_folder(
    folder: str, table: TableRef, encoder: str, *, storage: Storage, key: str | None = None, check: bool = True
) -> Imported:
    """Make a table from a folder that clip-retrieval or `isthmus export` wrote.

    Args:
        folder: a folder with `img_emb` and/or `text_emb` beside `metadata`, or with Parquet files; local or on S3.
        table: the new table.
        encoder: the spec of the encoder that made the vectors; it also encodes queries to the table.
        storage: how to reach the folder.
        key: the metadata's column of row ids; None takes `row_id` or `key` if there is one, else numbers the rows.
        check: whether to encode a few captions and pictures and compare the vectors.

    Raises:
        FileNotFoundError: the folder holds no such files.
        ForeignVectorsError: the vectors differ from the encoder's in dimension or direction.
        ValueError: arrays and metadata differ in length, a vector has values that are not finite, an id is null or
            occurs twice, or the table already exists.
    """
    import lance

    from encoders.registry import describe

    if open_dataset(table, missing_ok=True) is not None:
        raise ValueError(f"table {table}: already exists; give another name")
    root = absolute(folder)
    parts = _find_parts(root, storage)
    card = describe(encoder).card
    columns = _vector_columns(parts[0], root, storage)
    _check_sizes(columns, card, encoder)
    checked: dict[str, float | None] = dict.fromkeys(columns)
    first = _read(parts[0], 0, columns, key, storage, root)
    if check:
        checked = _check_sample(first, columns, encoder, storage)
    modalities = tuple(modality for column, modality in MODALITIES.items() if column in columns)
    settings = {"imported_from": root, "libraries": library_versions()}
    provenance = Provenance(encoder=card, modalities=modalities, settings=settings)
    schema = first.schema.with_metadata(provenance.to_metadata())
    batches = _Batches(_batches(parts, columns, key, storage, root, schema))
    try:
        written = lance.write_dataset(
            pa.RecordBatchReader.from_batches(schema, batches),
            table.uri,
            schema=schema,
            mode="create",
            storage_options=table.options,
        )
    except OSError as error:
        if batches.problem is not None:
            _clear(table)
            raise batches.problem from None
        raise translate(error, table.uri) from error
    return Imported(table=str(table), rows=written.count_rows(), vectors=columns, checked=checked)


class _Batches:
    """Batches, and the error that they raised, which Lance's own code would turn into text."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self.problem: Exception | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._batches
        except Exception as error:
            self.problem = error
            raise


def _clear(table: TableRef) -> None:
    """Remove the files of a table whose creation failed."""
    files = table.storage.filesystem(table.uri)
    if files.exists(table.uri):
        files.rm(table.uri, recursive=True)


def _find_parts(root: str, storage: Storage) -> list[_Part]:
    found = retry(lambda: sorted(storage.filesystem(root).find(root)), root)
    paths = [path if "://" in path or not root.startswith("s3://") else f"s3://{path}" for path in found]
    inside = {path.removeprefix(root).lstrip("/"): path for path in paths}
    arrays = {
        column: [path for name, path in inside.items() if name.startswith(f"{folder}/") and name.endswith(".npy")]
        for column, folder in FOLDERS.items()
    }
    arrays = {column: files for column, files in arrays.items() if files}
    metadata = [path for name, path in inside.items() if name.startswith(f"{METADATA}/") and name.endswith(".parquet")]
    if arrays:
        for column, files in arrays.items():
            if len(files) != len(metadata):
                raise ValueError(
                    f"{root}: {len(files)} files in {FOLDERS[column]} and {len(metadata)} in {METADATA}; each file of "
                    "vectors needs its file of metadata"
                )
        return [_Part({column: files[n] for column, files in arrays.items()}, path) for n, path in enumerate(metadata)]
    plain = [path for name, path in inside.items() if name.startswith(PARQUET_PREFIX) and name.endswith(".parquet")]
    if not plain:
        raise FileNotFoundError(
            f"{root}: holds neither {' nor '.join(FOLDERS.values())} beside {METADATA}, nor {PARQUET_PREFIX}_*.parquet"
        )
    return [_Part({}, path) for path in plain]


def _vector_columns(part: _Part, root: str, storage: Storage) -> dict[str, int]:
    """The vector columns, with their dimensions."""
    if part.arrays:
        return {column: _load(path, storage).shape[1] for column, path in part.arrays.items()}
    schema = _metadata(part.metadata, storage).schema
    sizes = {}
    for column in FOLDERS:
        if column in schema.names:
            kind = schema.field(column).type
            if not pa.types.is_fixed_size_list(kind):
                raise ValueError(f"{root}: column {column} is {kind}; give lists of one fixed length")
            sizes[column] = kind.list_size
    if not sizes:
        raise ValueError(f"{root}: has no column {' or '.join(FOLDERS)}; columns are {', '.join(schema.names)}")
    return sizes


def _check_sizes(columns: dict[str, int], card: EncoderCard, encoder: str) -> None:
    for column, size in columns.items():
        tower = card.tower(MODALITIES[column])
        if tower is None or tower.dim != size:
            gives = f"gives vectors of {tower.dim}" if tower is not None else f"has no {MODALITIES[column]} tower"
            raise ForeignVectorsError(
                f"encoder {encoder!r} {gives}, {FOLDERS[column]} holds vectors of {size}; name the one that made them"
            )


def _load(path: str, storage: Storage) -> NDArray[Any]:
    data = retry(lambda: bytes(storage.filesystem(path).cat_file(path)), path)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path}: not an array of numbers ({error})") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"{path}: {array.dtype} of shape {array.shape}; give rows of floats")
    return np.asarray(array)


def _metadata(path: str, storage: Storage) -> pa.Table:
    return pq.read_table(io.BytesIO(retry(lambda: bytes(storage.filesystem(path).cat_file(path)), path)))


def _read(part: _Part, offset: int, columns: dict[str, int], key: str | None, storage: Storage, root: str) -> pa.Table:
    """The rows of a part in the columns of a table."""
    found = _metadata(part.metadata, storage)
    vectors = {
        column: _load(part.arrays[column], storage) if part.arrays else matrix(found[column]) for column in columns
    }
    for column, array in vectors.items():
        if len(array) != found.num_rows:
            raise ValueError(f"{part.metadata}: {found.num_rows} rows, but {len(array)} vectors of {column}")
        if array.shape[1] != columns[column]:
            raise ValueError(f"{part.arrays[column]}: vectors of {array.shape[1]}, others have {columns[column]}")
        if not np.isfinite(array).all():
            raise ValueError(f"{part.metadata}: {column} holds values that are not finite")
    count = found.num_rows
    ids = _ids(found, offset, key, root)
    uri = IMAGE_URI if IMAGE_URI in found.column_names else IMAGE_PATH
    fields: dict[str, Any] = {
        ROW_ID: ids,
        ITEM_ID: found[ITEM_ID].cast(pa.string()) if ITEM_ID in found.column_names else ids,
        CAPTION: found[CAPTION].cast(pa.string()) if CAPTION in found.column_names else pa.nulls(count, pa.string()),
        IMAGE_URI: found[uri].cast(pa.string()) if uri in found.column_names else pa.nulls(count, pa.string()),
    }
    others = [name for name in found.column_names if name not in RESERVED and name not in (key, IMAGE_PATH)]
    fields |= {name: found[name] for name in others}
    for column, array in vectors.items():
        dtype = "float16" if array.dtype == np.float16 else "float32"
        kind = vector_type(columns[column], dtype)
        fields[column] = pa.FixedSizeListArray.from_arrays(pa.array(array.astype(dtype).ravel()), type=kind)
    fields[SHARD] = pa.array(["imported"] * count, pa.string())
    fields[POSITION] = pa.array(range(offset, offset + count), pa.int64())
    return pa.table(fields)


def _ids(found: pa.Table, offset: int, key: str | None, root: str) -> pa.ChunkedArray | pa.Array:
    names = found.column_names
    if key is not None and key not in names:
        raise ValueError(f"{root}: metadata has no column {key!r}; columns are {', '.join(names)}")
    name = key or next((n for n in (ROW_ID, "key") if n in names), None)
    if name is None:
        return pa.array([f"{n:09d}" for n in range(offset, offset + found.num_rows)])
    ids = found[name].cast(pa.string())
    if ids.null_count:
        raise ValueError(f"{root}: column {name!r} has {ids.null_count} nulls; name another with --key")
    return ids


def _batches(
    parts: Sequence[_Part], columns: dict[str, int], key: str | None, storage: Storage, root: str, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    offset = 0
    seen: set[str] = set()
    for part in parts:
        table = _read(part, offset, columns, key, storage, root)
        for row_id in table[ROW_ID].to_pylist():
            if row_id in seen:
                raise ValueError(f"{part.metadata}: row id {row_id!r} occurs twice; name another column with --key")
            seen.add(row_id)
        offset += table.num_rows
        yield from table.cast(schema.remove_metadata()).replace_schema_metadata(schema.metadata).to_batches()


def _check_sample(rows: pa.Table, columns: dict[str, int], encoder: str, storage: Storage) -> dict[str, float | None]:
    """The median cosine of some rows' vectors to the encoder's own, by column.

    Raises:
        ForeignVectorsError: the median is too low.
    """
    from encoders.images import ImageError, prepare
    from encoders.registry import describe, load

    loaded = load(encoder, EncoderOptions(text_policy="truncate"))
    transform = describe(encoder).image_transform
    found: dict[str, float | None] = {}
    for column in columns:
        sample = rows.filter(rows[IMAGE_URI if column == IMAGE_VECTOR else CAPTION].is_valid()).slice(0, _CHECKED)
        theirs = matrix(sample[column]).astype(np.float32)
        kept, inputs = [], []
        if column == IMAGE_VECTOR and transform is not None:
            for n, data in enumerate(read_images(sample[IMAGE_URI].to_pylist(), storage)):
                try:
                    inputs.append(prepare(data, transform) if isinstance(data, bytes) else None)
                except ImageError:
                    inputs.append(None)
                kept += [n] if inputs[-1] is not None else []
            ours = loaded.encode_images([pixels for pixels in inputs if pixels is not None]) if kept else None
        else:
            captions = sample[CAPTION].to_pylist()
            kept = list(range(len(captions)))
            ours = loaded.encode_texts(captions).vectors if captions else None
        found[column] = None
        if ours is not None:
            cosines = np.sum(_unit(np.asarray(ours)) * _unit(theirs[kept]), axis=1)
            found[column] = round(float(np.median(cosines)), 4)
            if np.median(cosines) < _SAME_COSINE:
                raise ForeignVectorsError(
                    f"{FOLDERS[column]}: {len(kept)} vectors have a median cosine of {np.median(cosines):.3f} to those "
                    f"that {encoder!r} gives for the same; name the encoder that made them, or take --no-check"
                )
    return found


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1.0))
