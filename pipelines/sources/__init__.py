"""Corpora: one small module per format, one schema for all."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.rows.contract import Columns
from pipelines.sources.base import CorpusShard, Source
from pipelines.sources.captions import open_captions
from pipelines.sources.coco import open_coco
from pipelines.sources.corpus import Corpus
from pipelines.sources.detect import LISTS, PARQUET, TARS, choose_list, detect_format, with_suffix
from pipelines.sources.folder import open_folder
from pipelines.sources.karpathy import open_karpathy
from pipelines.sources.listing import FileInfo, list_corpus, without_underscored
from pipelines.sources.parquet import open_parquet
from pipelines.sources.webdataset import open_webdataset
from pipelines.store.retries import retry
from pipelines.store.storage import Storage, absolute

__all__ = ["FORMATS", "Corpus", "CorpusShard", "Source", "open_source"]

_Opener = Callable[[str, list[FileInfo], str, Columns, Storage], Source]


def _parquet(corpus: str, files: list[FileInfo], root: str, columns: Columns, storage: Storage) -> Source:
    chosen = _only(corpus, without_underscored(files, root), PARQUET, "parquet")
    return open_parquet(corpus, chosen, root, columns, storage)


def _webdataset(corpus: str, files: list[FileInfo], root: str, columns: Columns, storage: Storage) -> Source:
    chosen = _only(corpus, without_underscored(files, root), TARS, "webdataset")
    return open_webdataset(corpus, chosen, columns, storage)


def _captions(corpus: str, files: list[FileInfo], root: str, columns: Columns, storage: Storage) -> Source:
    return open_captions(corpus, choose_list(corpus, files, root, LISTS), columns, storage)


def _coco(corpus: str, files: list[FileInfo], root: str, columns: Columns, storage: Storage) -> Source:
    return open_coco(corpus, choose_list(corpus, files, root, (".json",)), columns, storage)


def _karpathy(corpus: str, files: list[FileInfo], root: str, columns: Columns, storage: Storage) -> Source:
    return open_karpathy(corpus, choose_list(corpus, files, root, (".json",)), columns, storage)


_OPENERS: dict[str, _Opener] = {
    "parquet": _parquet,
    "webdataset": _webdataset,
    "folder": open_folder,
    "captions": _captions,
    "coco": _coco,
    "karpathy": _karpathy,
}
FORMATS = ("auto", *_OPENERS)


def open_source(corpus: str, *, columns: Columns, storage: Storage, format: str = "auto") -> Corpus:
    """Open a corpus.

    Args:
        corpus: a file, a folder, a glob, or an `s3://` prefix.
        columns: the roles that the user named.
        storage: how to reach the corpus.
        format: one of `FORMATS`; `auto` detects the format from the files.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the format is unknown or cannot be detected, or the corpus does not have it.
        OSError: the store cannot be read.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: not known; formats are {', '.join(FORMATS)}")
    listing = list_corpus(corpus, storage)
    files, root = list(listing.files), listing.root
    if format == "auto":
        format = retry(lambda: detect_format(corpus, files, root, storage), root)
    source = retry(lambda: _OPENERS[format](corpus, files, root, columns, storage), root)
    return Corpus(source=source, listing=listing)


def _only(corpus: str, files: list[FileInfo], suffixes: tuple[str, ...], format: str) -> list[FileInfo]:
    """The files of a format. A single file that the user named may have any name.

    Raises:
        ValueError: there are none.
    """
    if [info.uri for info in files] == [absolute(corpus)]:
        return files
    if chosen := with_suffix(files, suffixes):
        return chosen
    raise ValueError(f"corpus {corpus}: holds no {' or '.join(suffixes)} file, so it is not {format}")
