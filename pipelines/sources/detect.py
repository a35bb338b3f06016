"""Detects a corpus' format from its files. Pure, except that it may read the beginning of a JSON file."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from pipelines.sources.listing import FileInfo, without_underscored
from pipelines.sources.picture_names import PICTURE_SUFFIXES
from pipelines.store.storage import Storage

PARQUET = (".parquet", ".pq")
LISTS = (".csv", ".tsv", ".jsonl")
TARS = (".tar", ".tar.gz", ".tgz")
_LIST_NAMES = ("captions", "metadata")
_PEEK_BYTES = 1 << 20


def detect_format(corpus: str, files: Sequence[FileInfo], root: str, storage: Storage) -> str:
    """The format of a corpus.

    Args:
        corpus: the corpus as the user named it, for messages.
        files: all of its files.
        root: its folder.
        storage: how to reach it.

    Raises:
        ValueError: no known format, or several at once.
    """
    data = without_underscored(files, root)
    parquet, tars = with_suffix(data, PARQUET), with_suffix(data, TARS)
    if parquet and tars and not _are_side_tables(parquet, tars):
        raise ValueError(
            f"corpus {corpus}: holds {len(parquet)} Parquet files and {len(tars)} tars; "
            "choose with --format parquet or --format webdataset"
        )
    if tars:
        return "webdataset"
    if parquet:
        return "parquet"
    if [info for info in with_suffix(data, LISTS) if is_top(info, root)]:
        return "captions"
    if len(files) == 1 and files[0].suffix == ".json":
        return _json_kind(files[0], storage)
    if with_suffix(files, (*PICTURE_SUFFIXES, ".txt")):
        return "folder"
    kinds = ", ".join(sorted({info.suffix or "files without an extension" for info in files}))
    raise ValueError(f"corpus {corpus}: holds {kinds}, none of which isthmus recognises; give --format")


def choose_list(corpus: str, files: Sequence[FileInfo], root: str, suffixes: tuple[str, ...]) -> FileInfo:
    """The one file that lists the pictures of a folder: `captions.*` or `metadata.*` if there are several lists.

    Raises:
        ValueError: there is no list, or several candidates.
    """
    lists = [info for info in with_suffix(files, suffixes) if is_top(info, root)]
    named = [info for info in lists if posixpath.splitext(info.name)[0].lower() in _LIST_NAMES]
    chosen = lists if len(lists) == 1 else named
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(info.name for info in lists) or f"no {' or '.join(suffixes)} file"
    raise ValueError(
        f"corpus {corpus}: expected one list of pictures, found {names}; name the file itself, or give "
        "--format folder for the pictures alone"
    )


def with_suffix(files: Sequence[FileInfo], suffixes: tuple[str, ...]) -> list[FileInfo]:
    """The files whose names end with one of the suffixes, in upper or lower case."""
    return [info for info in files if info.name.lower().endswith(suffixes)]


def is_top(info: FileInfo, root: str) -> bool:
    """Whether a file is directly in the folder."""
    return posixpath.dirname(info.uri) == root.rstrip("/")


def _are_side_tables(parquet: Sequence[FileInfo], tars: Sequence[FileInfo]) -> bool:
    """Whether each Parquet file only describes the tar of the same name, as img2dataset writes them."""
    stems = {posixpath.splitext(info.uri)[0] for info in tars}
    return all(posixpath.splitext(info.uri)[0] in stems for info in parquet)


def _json_kind(info: FileInfo, storage: Storage) -> str:
    """COCO or Karpathy, judged by the file's beginning, because COCO's annotations may come hundreds of MB later."""
    head = bytes(storage.filesystem(info.uri).cat_file(info.uri, start=0, end=_PEEK_BYTES))
    if b'"images"' in head and b'"sentences"' in head:
        return "karpathy"
    if b'"annotations"' in head or (b'"images"' in head and b'"file_name"' in head):
        return "coco"
    raise ValueError(
        f"corpus {info.uri}: neither COCO captions nor a Karpathy split; for a list of JSON objects write one per line "
        "into a .jsonl file"
    )
