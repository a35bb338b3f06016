"""Corpora that are a list: a CSV, TSV, JSONL, COCO or Karpathy file that names pictures lying beside it.

The file is parsed whole, once a process, into records; shards are ranges of 1,024 of them.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson

from pipelines.contract import Columns
from pipelines.sources.base import Shard
from pipelines.sources.listing import FileInfo
from pipelines.sources.records import as_captions, as_key, check_passthrough, records_table, resolve_picture
from pipelines.storage import Storage

RECORDS_A_SHARD = 1_024
_URI_NAMES = ("image", "image_path", "path", "file_name", "filename", "filepath", "uri", "url", "img")
_CAPTION_NAMES = ("caption", "captions", "text", "sentence", "sentences", "alt", "title")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A parsed list: a row a record, with the roles resolved to its columns."""

    table: pa.Table
    columns: Columns
    root: str

    def passthrough(self) -> pa.Schema:
        """The fields that pass through: all but the caption, and reserved names that play a role."""
        roles = {self.columns.key, self.columns.item} & {"row_id", "item_id"}
        return pa.schema([f for f in self.table.schema if f.name not in {self.columns.caption} | roles])


@dataclass(frozen=True, kw_only=True)
class ListedSource:
    """A corpus that is a list of pictures and captions."""

    info: FileInfo
    format: str
    columns: Columns
    storage: Storage
    fields: pa.Schema
    has: frozenset[str]
    _rows: int = field(default=0, compare=False)

    def schema(self) -> pa.Schema:
        """Fields that pass through."""
        return self.fields

    def modalities(self) -> frozenset[str]:
        """What there are columns for."""
        return self.has

    def shards(self) -> list[Shard]:
        """Ranges of records."""
        each = max(1, self.info.size // max(1, self._rows))
        starts = range(0, self._rows, RECORDS_A_SHARD)
        return [self._shard(start, min(RECORDS_A_SHARD, self._rows - start), each) for start in starts]

    def _shard(self, start: int, rows: int, bytes_each: int) -> Shard:
        return Shard(
            uri=self.info.uri,
            version=self.info.version,
            start=start,
            stop=start + rows,
            first_row=start,
            rows=rows,
            size_bytes=rows * bytes_each,
        )

    def read(self, shard: Shard) -> Iterator[pa.Table]:
        """The records of a range; their pictures are fetched by whoever needs them."""
        listing = parse(self.info, self.format, self.columns, self.storage)
        rows = listing.table.slice(shard.start, shard.stop - shard.start)
        values = {role: _column(rows, name) for role, name in vars(listing.columns).items()}
        records = [
            {
                "key": as_key(values["key"][i]),
                "item": as_key(values["item"][i]),
                "captions": as_captions(values["caption"][i]),
                **_picture(values["uri"][i], listing.root),
            }
            for i in range(rows.num_rows)
        ]
        yield records_table(records, rows.select(self.fields.names))


def open_listed(corpus: str, info: FileInfo, format: str, columns: Columns, storage: Storage) -> ListedSource:
    """The source of a list.

    Raises:
        ValueError: the file cannot be parsed, or a named column is missing.
    """
    listing = parse(info, format, columns, storage)
    fields = listing.passthrough()
    check_passthrough(fields.names, corpus)
    has = {"image": listing.columns.uri is not None, "text": listing.columns.caption is not None}
    return ListedSource(
        info=info,
        format=format,
        columns=columns,
        storage=storage,
        fields=fields,
        has=frozenset(name for name, there in has.items() if there),
        _rows=listing.table.num_rows,
    )


@lru_cache(maxsize=2)
def parse(info: FileInfo, format: str, columns: Columns, storage: Storage) -> Listing:
    """The list, parsed.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    files = storage.filesystem(info.uri)
    data = bytes(files.cat_file(info.uri))
    folder = posixpath.dirname(info.uri)
    try:
        if format == "coco":
            return _coco(json.loads(data), folder, info, storage, columns)
        if format == "karpathy":
            return _karpathy(json.loads(data), folder, columns)
        return _captions(data, folder, info, columns)
    except (pa.ArrowException, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"corpus {info.uri}: cannot be read as {format}: {type(error).__name__}: {error}") from error


def _captions(data: bytes, folder: str, info: FileInfo, columns: Columns) -> Listing:
    source = pa.BufferReader(data)
    if info.suffix == ".jsonl":
        table = pajson.read_json(source, parse_options=pajson.ParseOptions(newlines_in_values=False))
    else:
        delimiter = "\t" if info.suffix == ".tsv" else ","
        options = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        table = pacsv.read_csv(source, parse_options=options)
    names = table.schema.names
    for role, name in vars(columns).items():
        if name is not None and name not in names:
            raise ValueError(
                f"corpus {info.uri}: no column {name!r} (--columns.{role}); columns are {', '.join(names)}"
            )
    uri = columns.uri or columns.image or next((n for n in _URI_NAMES if n in names), None)
    caption = columns.caption or next((n for n in _CAPTION_NAMES if n in names and n != uri), None)
    roles = Columns(key=columns.key, item=columns.item, uri=uri, caption=caption)
    return Listing(table=table, columns=roles, root=folder)


def _coco(data: dict[str, Any], folder: str, info: FileInfo, storage: Storage, columns: Columns) -> Listing:
    """COCO captions: `images` with ids and file names, `annotations` with captions; the item is the image."""
    captions: dict[Any, list[str]] = {}
    for annotation in data["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(str(annotation["caption"]).strip())
    rows = [
        {"id": image["id"], "file_name": image["file_name"], "captions": captions.get(image["id"])}
        for image in data["images"]
    ]
    schema = pa.schema([("id", pa.int64()), ("file_name", pa.string()), ("captions", pa.list_(pa.string()))])
    root = _coco_root(rows, folder, info, storage)
    roles = Columns(key=_named(columns.key, schema), item=columns.item or "id", uri="file_name", caption="captions")
    return Listing(table=pa.Table.from_pylist(rows, schema=schema), columns=roles, root=root)


def _coco_root(rows: list[dict[str, Any]], folder: str, info: FileInfo, storage: Storage) -> str:
    """Where the pictures lie: beside the file, in `images/`, or in the folder of its split (`train2017`)."""
    if not rows:
        return folder
    files = storage.filesystem(folder)
    split = posixpath.splitext(info.name)[0].removeprefix("captions_")
    parents = (folder, posixpath.dirname(folder))
    candidates = [f"{parent}{sub}" for parent in parents for sub in ("", f"/{split}", "/images", f"/images/{split}")]
    return next((root for root in candidates if files.exists(f"{root}/{rows[0]['file_name']}")), folder)


def _karpathy(data: dict[str, Any], folder: str, columns: Columns) -> Listing:
    """Karpathy's splits of Flickr30k and COCO: several sentences a picture, and the split it belongs to."""
    rows = [
        {
            "id": image.get("cocoid", image.get("imgid")),
            "file_name": posixpath.join(image.get("filepath", ""), image["filename"]),
            "split": image.get("split"),
            "captions": [sentence["raw"].strip() for sentence in image["sentences"]],
        }
        for image in data["images"]
    ]
    kinds = [("id", pa.int64()), ("file_name", pa.string()), ("split", pa.string())]
    schema = pa.schema([*kinds, ("captions", pa.list_(pa.string()))])
    roles = Columns(key=_named(columns.key, schema), item=columns.item or "id", uri="file_name", caption="captions")
    return Listing(table=pa.Table.from_pylist(rows, schema=schema), columns=roles, root=folder)


def _named(name: str | None, schema: pa.Schema) -> str | None:
    if name is not None and name not in schema.names:
        raise ValueError(f"corpus: no field {name!r} (--columns.key); fields are {', '.join(schema.names)}")
    return name


def _picture(path: Any, root: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        return {"image_uri": resolve_picture(str(path), root)}
    except ValueError as error:
        return {"image_uri": str(path), "reason": "bad_record", "message": str(error)}


def _column(table: pa.Table, name: str | None) -> list[Any]:
    return list(table[name].to_pylist()) if name is not None else [None] * table.num_rows
