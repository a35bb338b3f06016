"""Corpora: one small module a format, one schema out."""

from __future__ import annotations

import json
import posixpath

from pipelines.contract import Columns
from pipelines.sources.base import Shard, Source
from pipelines.sources.folder import open_folder
from pipelines.sources.listed import open_listed
from pipelines.sources.listing import GLOB_CHARACTERS, FileInfo, list_files
from pipelines.sources.parquet import open_parquet
from pipelines.sources.webdataset import PICTURE_SUFFIXES, open_webdataset
from pipelines.storage import Storage, absolute

__all__ = ["FORMATS", "Shard", "Source", "open_source"]

FORMATS = ("auto", "parquet", "webdataset", "folder", "captions", "coco", "karpathy")
_PARQUET = (".parquet", ".pq")
_LISTS = (".csv", ".tsv", ".jsonl")
_TARS = (".tar", ".tgz", ".gz")


def open_source(corpus: str, *, columns: Columns, storage: Storage, format: str = "auto") -> Source:
    """The source of a corpus.

    Args:
        corpus: a file, a folder, a glob, or an `s3://` prefix.
        columns: roles that were named.
        storage: how to reach it.
        format: one of `FORMATS`; `auto` looks at what is there.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the format is not known or cannot be told, or the corpus is not of it.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: not known; formats are {', '.join(FORMATS)}")
    files = list_files(corpus, storage)
    chosen = _detect(corpus, files, storage) if format == "auto" else format
    root = _root(corpus)
    if chosen == "parquet":
        return open_parquet(corpus, _only(files, _PARQUET, corpus, chosen), root, columns, storage)
    if chosen == "webdataset":
        return open_webdataset(corpus, _only(files, _TARS, corpus, chosen), columns, storage)
    if chosen == "folder":
        return open_folder(corpus, files, root, columns, storage)
    wanted = _LISTS if chosen == "captions" else (".json",)
    lists = [info for info in _only(files, wanted, corpus, chosen) if _is_top(info, root)]
    if len(lists) != 1:
        names = ", ".join(info.name for info in lists) or "none"
        raise ValueError(f"corpus {corpus}: one {chosen} file is wanted, found {names}; name the file itself")
    return open_listed(corpus, lists[0], chosen, columns, storage)


def _detect(corpus: str, files: list[FileInfo], storage: Storage) -> str:
    """The format of a corpus by its files.

    Raises:
        ValueError: nothing that is known, or a JSON file of an unknown kind.
    """
    found = {info.suffix for info in files}
    if found & set(_PARQUET):
        return "parquet"
    if any(info.name.endswith((".tar", ".tar.gz", ".tgz")) for info in files):
        return "webdataset"
    root = _root(corpus)
    if [info for info in files if info.suffix in _LISTS and _is_top(info, root)]:
        return "captions"
    if len(files) == 1 and found == {".json"}:
        return _json_kind(files[0], storage)
    if found & (PICTURE_SUFFIXES | {".txt"}):
        return "folder"
    kinds = ", ".join(sorted(found)) or "files without extensions"
    raise ValueError(f"corpus {corpus}: holds {kinds}, none of which isthmus reads by itself; give --format")


def _json_kind(info: FileInfo, storage: Storage) -> str:
    data = bytes(storage.filesystem(info.uri).cat_file(info.uri))
    try:
        parsed = json.loads(data)
    except ValueError as error:
        raise ValueError(f"corpus {info.uri}: is not JSON: {error}") from error
    if isinstance(parsed, dict) and "annotations" in parsed:
        return "coco"
    images = parsed.get("images") if isinstance(parsed, dict) else None
    if images and "sentences" in images[0]:
        return "karpathy"
    raise ValueError(f"corpus {info.uri}: neither COCO captions nor a Karpathy split; give --format")


def _only(files: list[FileInfo], suffixes: tuple[str, ...], corpus: str, format: str) -> list[FileInfo]:
    chosen = [info for info in files if info.suffix in suffixes]
    if not chosen:
        raise ValueError(f"corpus {corpus}: holds no {' or '.join(suffixes)} file, so it is not {format}")
    return chosen


def _root(corpus: str) -> str:
    """The folder that relative paths start from."""
    uri = absolute(corpus)
    parts = uri.split("/")
    wild = next((i for i, part in enumerate(parts) if any(c in part for c in GLOB_CHARACTERS)), None)
    if wild is not None:
        return "/".join(parts[:wild])
    return posixpath.dirname(uri) if posixpath.splitext(uri)[1] else uri


def _is_top(info: FileInfo, root: str) -> bool:
    return posixpath.dirname(info.uri) == root.rstrip("/")
