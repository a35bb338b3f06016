"""A folder of pictures with sidecar captions: `cat.jpg` and `cat.txt`, one caption a line.

A picture without a text, and a text without a picture, are records too.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from encoders.digest import digest_json
from pipelines.contract import Columns
from pipelines.sources.base import Shard
from pipelines.sources.listing import FileInfo, relative_to
from pipelines.sources.records import bad_records, records_table
from pipelines.sources.webdataset import PICTURE_SUFFIXES
from pipelines.storage import Storage

_FIELDS = ("path", "stem")
_SCHEMA = pa.schema([pa.field("path", pa.string())])
_MAX_TEXT_BYTES = 16 << 20
_PICTURE_AND_TEXT = 1
_PICTURE_ALONE = 2
_TEXT_ALONE = 3


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A folder. Each record is its own shard, so that a picture more or less touches no other one."""

    root: str
    columns: Columns
    storage: Storage
    _shards: tuple[Shard, ...] = field(default=(), repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": ()}

    def schema(self) -> pa.Schema:
        """`path`, relative to the folder."""
        return _SCHEMA

    def modalities(self) -> frozenset[str]:
        """Whether there is any picture, and any text."""
        kinds = {shard.start for shard in self._shards}
        has = {"image": kinds - {_TEXT_ALONE}, "text": kinds - {_PICTURE_ALONE}}
        return frozenset(name for name, there in has.items() if there)

    def shards(self) -> list[Shard]:
        """A record each."""
        return list(self._shards)

    def read(self, shard: Shard) -> Iterator[pa.Table]:
        """The one record of a shard; its picture is fetched by whoever needs it."""
        relative = relative_to(shard.uri, self.root)
        stem = posixpath.splitext(relative)[0]
        names = {"path": relative, "stem": stem}
        captions = None
        if shard.start != _PICTURE_ALONE:
            text_uri = posixpath.splitext(shard.uri)[0] + ".txt"
            try:
                captions = self._captions(text_uri)
            except OSError as error:
                yield bad_records(1, f"{text_uri}: {error}", shard.uri, _SCHEMA)
                return
        record = {
            "key": names[self.columns.key] if self.columns.key else None,
            "item": names[self.columns.item] if self.columns.item else None,
            "image_uri": shard.uri if shard.start != _TEXT_ALONE else None,
            "captions": captions,
        }
        yield records_table([record], pa.table({"path": [relative]}, schema=_SCHEMA))

    def _captions(self, uri: str) -> list[str]:
        data = self.storage.filesystem(uri).cat_file(uri, start=0, end=_MAX_TEXT_BYTES)
        lines = data.decode("utf-8", errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]


def open_folder(corpus: str, files: list[FileInfo], root: str, columns: Columns, storage: Storage) -> FolderSource:
    """The source of a folder of pictures and texts.

    Raises:
        ValueError: a role names something else than `path` or `stem`.
    """
    for role, name in vars(columns).items():
        if name is not None and (role not in ("key", "item") or name not in _FIELDS):
            raise ValueError(
                f"corpus {corpus}: --columns.{role} {name!r}: a folder has the fields {' and '.join(_FIELDS)}, "
                "for the roles key and item"
            )
    pictures = {info.uri: info for info in files if info.suffix in PICTURE_SUFFIXES}
    texts = {posixpath.splitext(info.uri)[0]: info for info in files if info.suffix == ".txt"}
    stems = {posixpath.splitext(uri)[0] for uri in pictures}
    shards = [_picture_shard(info, texts.get(posixpath.splitext(uri)[0])) for uri, info in pictures.items()]
    shards += [
        Shard(uri=info.uri, version=info.version, start=_TEXT_ALONE, rows=1, size_bytes=info.size)
        for stem, info in texts.items()
        if stem not in stems
    ]
    ordered = tuple(sorted(shards, key=lambda shard: shard.uri))
    return FolderSource(root=root, columns=columns, storage=storage, _shards=ordered)


def _picture_shard(picture: FileInfo, text: FileInfo | None) -> Shard:
    versions = [picture.version, text.version if text else None]
    return Shard(
        uri=picture.uri,
        version=digest_json(versions),
        start=_PICTURE_AND_TEXT if text else _PICTURE_ALONE,
        rows=1,
        size_bytes=picture.size,
    )
