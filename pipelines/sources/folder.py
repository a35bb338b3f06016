"""A folder of pictures with sidecar captions: `cat.jpg` and `cat.txt`, one caption per line.

A picture without a text, and a text without a picture, are records too.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.rows.contract import Columns, Reason
from pipelines.sources.base import CorpusShard
from pipelines.sources.file_names import bad_name_message, has_bad_name
from pipelines.sources.listing import FileInfo, relative_to
from pipelines.sources.picture_names import PICTURE_SUFFIXES
from pipelines.sources.records import as_key, bad_record, records_table
from pipelines.store.retries import refusals, retry
from pipelines.store.storage import Storage

_FIELDS = ("path", "stem")
_SCHEMA = pa.schema([pa.field("path", pa.string())])
# The values of a shard's `start`: they tell a worker, without a listing, whether to look for a text.
_PICTURE_AND_TEXT = 1
_PICTURE_ALONE = 2
_TEXT_ALONE = 3


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A folder. Each record is its own shard, so adding or removing a picture affects no other record."""

    root: str
    columns: Columns
    storage: Storage
    _shards: tuple[CorpusShard, ...] = field(default=(), repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": ()}

    def schema(self) -> pa.Schema:
        """`path`, relative to the folder."""
        return _SCHEMA

    def modalities(self) -> frozenset[str]:
        """The modalities present: whether there is any picture, and any text."""
        kinds = {shard.start for shard in self._shards}
        has = {"image": kinds - {_TEXT_ALONE}, "text": kinds - {_PICTURE_ALONE}}
        return frozenset(name for name, there in has.items() if there)

    def shards(self) -> list[CorpusShard]:
        """One shard per record."""
        return list(self._shards)

    def read(self, shard: CorpusShard) -> Iterator[pa.Table]:
        """The one record of a shard. Its picture is not fetched here."""
        relative = relative_to(shard.uri, self.root)
        names = {"path": relative, "stem": _stem(relative)}
        record: dict[str, Any] = {
            "key": as_key(names.get(self.columns.key or "")),
            "item": as_key(names.get(self.columns.item or "")),
            "image_uri": as_key(shard.uri) if shard.start != _TEXT_ALONE else None,
        }
        if has_bad_name(shard.version):
            record |= bad_record(bad_name_message(shard.uri), shard.uri)
        elif shard.start != _PICTURE_ALONE:
            record |= self._text(shard)
        yield records_table([record], pa.table({"path": [as_key(relative)]}, schema=_SCHEMA))

    def _text(self, shard: CorpusShard) -> dict[str, Any]:
        """The captions of a record, or why they cannot be read."""
        uri = shard.uri if shard.start == _TEXT_ALONE else _stem(shard.uri) + shard.version.rpartition("+")[2]
        try:
            files = self.storage.filesystem(uri)
            text = bytes(retry(lambda: files.cat_file(uri), uri)).decode("utf-8-sig")
            refusals().served(uri)
        except UnicodeDecodeError as error:
            return bad_record(f"{uri} is not UTF-8: {error}", shard.uri)
        except OSError as error:
            if refusals().stops(uri, error):
                raise
            return bad_record(f"{uri}: {error}", shard.uri, Reason.FETCH_FAILED)
        return {"captions": [line.strip() for line in text.splitlines() if line.strip()]}


def open_folder(corpus: str, files: list[FileInfo], root: str, columns: Columns, storage: Storage) -> FolderSource:
    """The source of a folder of pictures and texts.

    Args:
        corpus: the corpus as the user named it, for messages.
        files: all files of the folder; those that are neither pictures nor texts are left out.
        root: the folder that `path` and `stem` are relative to.
        columns: `key` and `item` may name `path` or `stem`.
        storage: how to reach it.

    Raises:
        ValueError: a role names something else, or the key is the stem and two pictures share one.
        FileNotFoundError: there is neither a picture nor a text.
    """
    for role, name in vars(columns).items():
        if name is not None and (role not in ("key", "item") or name not in _FIELDS):
            raise ValueError(
                f"corpus {corpus}: --columns.{role} {name!r}: a folder has the fields {' and '.join(_FIELDS)}, "
                "for the roles key and item"
            )
    pictures = [info for info in files if info.suffix in PICTURE_SUFFIXES]
    texts = {_stem(info.uri): info for info in files if info.suffix == ".txt"}
    if not pictures and not texts:
        raise FileNotFoundError(f"corpus {corpus}: holds neither pictures nor .txt files")
    if columns.key == "stem":
        _check_stems(corpus, pictures)
    stems = {_stem(info.uri) for info in pictures}
    shards = [_picture_shard(info, texts.get(_stem(info.uri))) for info in pictures]
    shards += [_shard(info, info.version, _TEXT_ALONE) for stem, info in texts.items() if stem not in stems]
    ordered = tuple(sorted(shards, key=lambda shard: shard.uri))
    return FolderSource(root=root, columns=columns, storage=storage, _shards=ordered)


def _check_stems(corpus: str, pictures: list[FileInfo]) -> None:
    counts = Counter(_stem(info.uri) for info in pictures)
    for stem, count in counts.items():
        if count > 1:
            raise ValueError(
                f"corpus {corpus}: {count} pictures are named {posixpath.basename(stem)!r} with different extensions; "
                "use the path as the key: --columns.key path"
            )


def _picture_shard(picture: FileInfo, text: FileInfo | None) -> CorpusShard:
    """A picture's shard. Its version ends with its text's suffix (`.txt`, `.TXT`): so a worker finds the text."""
    if text is None:
        return _shard(picture, picture.version, _PICTURE_ALONE)
    suffix = posixpath.splitext(text.name)[1]
    return _shard(picture, f"{picture.version}+{text.version}+{suffix}", _PICTURE_AND_TEXT, consumes=(text.uri,))


def _shard(info: FileInfo, version: str, kind: int, consumes: tuple[str, ...] = ()) -> CorpusShard:
    return CorpusShard(uri=info.uri, version=version, start=kind, rows=1, size_bytes=info.size, consumes=consumes)


def _stem(uri: str) -> str:
    return posixpath.splitext(uri)[0]
