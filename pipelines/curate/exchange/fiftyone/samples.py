"""Writes rows as samples of FiftyOne, one by one."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zlib
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.curate.exchange.arrays import matrix
from pipelines.curate.exchange.fiftyone.fields import METADATA, Field, clean, document, plan_fields
from pipelines.curate.exchange.fiftyone.picture_files import PLACEHOLDER, copies, own_files, placeholder
from pipelines.curate.exchange.folder import OutputFolder
from pipelines.rows.contract import IMAGE_URI, ROW_ID
from pipelines.store.storage import Storage

SAMPLES = "samples.json"
# Tags of the samples that show the placeholder.
NO_PICTURE = "no_picture"
PICTURE_MISSING = "picture_missing"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT64 = 1 << 63


@dataclass(kw_only=True)
class Written:
    """The results of writing samples.

    Attributes:
        rows: number of samples.
        files: number of all files.
        missing: number of rows whose picture could not be read.
        renamed: column → field, for columns whose name FiftyOne uses for something else.
        left_out: columns for which FiftyOne has no field.
    """

    rows: int = 0
    files: int = 2
    missing: int = 0
    renamed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def write_dataset(
    parts: Iterator[pa.Table],
    folder: OutputFolder,
    *,
    name: str,
    vectors: Sequence[str],
    info: dict[str, Any],
    pictures: Storage | None,
) -> Written:
    """Write rows as a dataset that appears only when it is complete.

    Args:
        parts: the rows, at least one part, which may be empty.
        folder: an empty folder.
        name: name of the dataset.
        vectors: vector columns; a row may lack their vectors.
        info: what FiftyOne shows as the dataset's info.
        pictures: how to reach the corpus, whose pictures are copied; None refers to the files where they are.

    Raises:
        ValueError: a picture is not a separate file and is not to be copied, or an integer is too large.
        OSError: a store cannot be read or written.
    """
    done = Written()
    fields: list[Field] = []
    bare = False
    with folder.stream(SAMPLES) as out:
        out.write(b'{"samples": [')
        for part in parts:
            if not fields:
                fields, done.left_out = plan_fields(part.schema, vectors)
            uris = part[IMAGE_URI].to_pylist() if IMAGE_URI in part.column_names else [None] * part.num_rows
            paths, copied = (own_files(uris), 0) if pictures is None else copies(uris, folder, pictures)
            for sample in _samples(part, fields, uris, paths):
                out.write(b",\n" if done.rows else b"\n")
                out.write(json.dumps(sample, allow_nan=False).encode())
                done.rows += 1
            done.files += copied
            done.missing += sum(1 for uri, path in zip(uris, paths, strict=True) if uri and path is None)
            bare = bare or None in paths
        out.write(b"\n]}\n")
        if bare:
            folder.write(PLACEHOLDER, placeholder())
            done.files += 1
        # Write this before the samples get their name: without it, FiftyOne takes them for its older format.
        done.renamed = {it.column: it.name for it in fields if it.name != it.column}
        folder.write(METADATA, document(name, fields, info))
    return done


def _samples(
    part: pa.Table, fields: Sequence[Field], uris: Sequence[str | None], paths: Sequence[str | None]
) -> Iterator[dict[str, Any]]:
    """The documents of a part's rows, in MongoDB's extended JSON."""
    values = {it.name: _values(it, part[it.column]) for it in fields}
    for n, (row_id, uri, path) in enumerate(zip(part[ROW_ID].to_pylist(), uris, paths, strict=True)):
        digest = hashlib.blake2b(row_id.encode(), digest_size=12).digest()
        missing = PICTURE_MISSING if uri else NO_PICTURE
        yield {
            # It depends only on the row, so a second export gives the same samples.
            "_id": {"$oid": digest.hex()},
            # FiftyOne shuffles by this value, and draws it from this range.
            "_rand": 0.999 + 0.001 * int.from_bytes(digest[:4], "big") / (1 << 32),
            "_media_type": "image",
            "filepath": path or PLACEHOLDER,
            "tags": [] if path else [missing],
            "metadata": None,
            **{name: column[n] for name, column in values.items()},
        }


def _values(it: Field, column: pa.ChunkedArray) -> list[Any]:
    """A column's values as they appear in a document."""
    if it.ftype == "VectorField":
        rows = iter(matrix(column.drop_null()))
        return [_binary(next(rows)) if there else None for there in column.is_valid().to_pylist()]
    if pa.types.is_timestamp(column.type):
        # MongoDB keeps milliseconds, and Python's own datetimes have no nanoseconds.
        column = column.cast(pa.timestamp("ms", column.type.tz), safe=False)
    return [_extended(value, it.column) for value in column.to_pylist()]


def _binary(vector: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A vector in the format of FiftyOne's vector fields: NumPy's own format, compressed."""
    buffer = io.BytesIO()
    np.save(buffer, vector, allow_pickle=False)
    return {"$binary": {"base64": b64encode(zlib.compress(buffer.getvalue(), 1)).decode(), "subType": "00"}}


def _extended(value: Any, column: str) -> Any:
    """A value in MongoDB's extended JSON.

    Raises:
        ValueError: an integer is too large.
    """
    match value:
        case None | bool() | str():
            return value
        case int():
            if not -_INT64 <= value < _INT64:
                raise ValueError(
                    f"column {column}: {value} exceeds FiftyOne's integers of 64 bits; exclude its rows with --where"
                )
            return value
        case float() | Decimal():
            number = float(value)
            return number if math.isfinite(number) else {"$numberDouble": _NOT_FINITE.get(number, "NaN")}
        case datetime() | date():
            return {"$date": {"$numberLong": str(_milliseconds(value))}}
        case time() | timedelta():
            return str(value)
        case dict():
            found: dict[str, Any] = {}
            for key, item in value.items():
                found[clean(key, found)] = _extended(item, column)
            return found
        case list() | tuple():
            return [_extended(item, column) for item in value]
    raise TypeError(f"column {column}: {type(value).__name__} has no field in FiftyOne")


_NOT_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}


def _milliseconds(value: date) -> int:
    """Milliseconds since 1970, as in MongoDB; a date counts as its midnight, and a time without a zone as UTC."""
    moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)
