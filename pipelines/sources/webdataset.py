"""WebDataset tars as img2dataset writes them: `000.jpg`, `000.txt`, `000.json` make one record.

A tar is read as a stream. Member names are names alone: nothing is ever written to, or read from, the disk under
them.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from pipelines.contract import Columns
from pipelines.sources.base import Shard
from pipelines.sources.listing import FileInfo
from pipelines.sources.locate import range_locator
from pipelines.sources.records import as_captions, as_key, bad_records, check_passthrough, records_table
from pipelines.storage import Storage

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
_KEY = "__key__"
_BATCH_BYTES = 8 << 20
_BATCH_RECORDS = 256
_SAMPLE_TARS = 8
_SAMPLE_RECORDS = 1_000


@dataclass
class _Sample:
    """The members of one key."""

    key: str
    image: bytes | None = None
    image_uri: str | None = None
    text: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class WebDatasetSource:
    """A corpus of tars; the types of the JSON fields are decided once, by a sample of the first tars."""

    columns: Columns
    passthrough: pa.Schema
    has: frozenset[str]
    storage: Storage
    _files: tuple[FileInfo, ...] = field(default=(), repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": ()}

    def schema(self) -> pa.Schema:
        """Fields that pass through."""
        return self.passthrough

    def modalities(self) -> frozenset[str]:
        """What the sampled records hold."""
        return self.has

    def shards(self) -> list[Shard]:
        """A tar each."""
        return [Shard(uri=info.uri, version=info.version, size_bytes=info.size) for info in self._files]

    def read(self, shard: Shard) -> Iterator[pa.Table]:
        """The records of a tar; a torn end is one reject after the records before it."""
        samples = _samples(shard.uri, self.storage)
        batch: list[_Sample] = []
        size = 0
        for sample in samples:
            if sample.error is not None:
                yield from self._table(batch)
                batch, size = [], 0
                yield bad_records(1, sample.error, sample.image_uri or shard.uri, self.passthrough)
                continue
            batch.append(sample)
            size += len(sample.image or b"")
            if size >= _BATCH_BYTES or len(batch) >= _BATCH_RECORDS:
                yield from self._table(batch)
                batch, size = [], 0
        yield from self._table(batch)

    def _table(self, samples: list[_Sample]) -> Iterator[pa.Table]:
        if not samples:
            return
        records = [self._record(sample) for sample in samples]
        arrays = [_fit([s.meta.get(f.name) for s in samples], f.type) for f in self.passthrough]
        rest = pa.table(arrays, schema=self.passthrough) if arrays else pa.table({})
        yield records_table(records, rest)

    def _record(self, sample: _Sample) -> dict[str, Any]:
        columns = self.columns
        caption = sample.text if columns.caption is None else sample.meta.get(columns.caption)
        if caption is None and columns.caption is None:
            caption = sample.meta.get("caption")
        key = sample.key if columns.key == _KEY else sample.meta.get(columns.key or "")
        return {
            "key": as_key(key) if columns.key else None,
            "item": as_key(sample.meta.get(columns.item)) if columns.item else None,
            "image": sample.image,
            "image_uri": sample.image_uri,
            "captions": as_captions(caption),
        }


def open_webdataset(corpus: str, files: list[FileInfo], columns: Columns, storage: Storage) -> WebDatasetSource:
    """The source of a corpus of tars; reads the head of the first ones.

    Raises:
        ValueError: a named field occurs in no sampled record, or a field's name is kept by isthmus.
    """
    sampled = list(islice((s for info in files[:_SAMPLE_TARS] for s in _samples(info.uri, storage)), _SAMPLE_RECORDS))
    whole = [sample for sample in sampled if sample.error is None]
    names = list(dict.fromkeys(name for sample in whole for name in sample.meta))
    for role, name in vars(columns).items():
        if name is not None and name != _KEY and name not in names:
            raise ValueError(
                f"corpus {corpus}: no JSON field {name!r} (--columns.{role}); fields are {', '.join([_KEY, *names])}"
            )
    used = {columns.caption or "caption", *({columns.key, columns.item} & {"row_id", "item_id"})}
    kept = [name for name in names if name not in used]
    check_passthrough(kept, corpus)
    types = {name: _infer([s.meta.get(name) for s in whole]) for name in kept}
    has_text = any(s.text is not None or s.meta.get(columns.caption or "caption") is not None for s in whole)
    has = {"image": any(s.image is not None for s in whole), "text": has_text}
    return WebDatasetSource(
        columns=columns,
        passthrough=pa.schema([pa.field(name, kind) for name, kind in types.items()]),
        has=frozenset(name for name, there in has.items() if there),
        storage=storage,
        _files=tuple(files),
    )


def _samples(uri: str, storage: Storage) -> Iterator[_Sample]:
    """The samples of a tar in order; one with `error` set where the tar is torn or not a tar."""
    current: _Sample | None = None
    try:
        with storage.filesystem(uri).open(uri, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as tar:
            plain = not uri.endswith(("gz", "bz2", "xz"))
            for member in tar:
                if not member.isfile():
                    continue
                key, suffix = _split(member.name)
                if current is not None and current.key != key:
                    yield current
                    current = None
                current = current or _Sample(key)
                _take(current, member, suffix, tar, uri if plain else None)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError, ConnectionError)):
            raise
        # The sample that was being read may lack members: it is the torn one.
        name = f" at {current.key!r}" if current else ""
        yield _Sample(current.key if current else "", error=f"{uri}: the tar is torn{name}: {error}", image_uri=uri)
        return
    if current is not None:
        yield current


def _take(sample: _Sample, member: tarfile.TarInfo, suffix: str, tar: tarfile.TarFile, uri: str | None) -> None:
    if suffix not in PICTURE_SUFFIXES and suffix not in (".txt", ".json"):
        return
    handle = tar.extractfile(member)
    data = handle.read() if handle else b""
    if len(data) < member.size:
        raise EOFError(f"{member.name}: {len(data)} bytes of {member.size}")
    if suffix in PICTURE_SUFFIXES:
        sample.image = data
        sample.image_uri = range_locator(uri, member.offset_data, member.size) if uri else None
    elif suffix == ".txt":
        sample.text = data.decode("utf-8", errors="replace").strip()
    else:
        try:
            meta = json.loads(data)
        except ValueError:
            meta = None
        sample.meta = meta if isinstance(meta, dict) else {}


def _split(name: str) -> tuple[str, str]:
    """The key (folder and name before the first dot) and the lower-case suffix after it."""
    folder, base = posixpath.split(name)
    stem, dot, rest = base.partition(".")
    return posixpath.join(folder, stem), f"{dot}{rest}".lower()


def _infer(values: list[Any]) -> pa.DataType:
    """The narrowest type that holds every value; JSON text where they are of several kinds."""
    there = [value for value in values if value is not None]
    if there and all(isinstance(v, bool) for v in there):
        return pa.bool_()
    if there and all(isinstance(v, int) and not isinstance(v, bool) for v in there):
        return pa.int64()
    if there and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in there):
        return pa.float64()
    if there and all(isinstance(v, list) and all(isinstance(i, str) for i in v) for v in there):
        return pa.list_(pa.string())
    return pa.string()


def _fit(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values in a column's type; a misfit becomes text where the column is text, else null."""
    if pa.types.is_string(kind):
        texts = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
        return pa.array(texts, kind)
    fitting = []
    for value in values:
        try:
            fitting.append(pa.scalar(value, kind).as_py())
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError):
            fitting.append(None)
    return pa.array(fitting, kind)
