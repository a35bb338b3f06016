"""The common parts of the sample corpora: columns, split, writing, summary."""

from __future__ import annotations

import filecmp
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from encoders.digest import digest_bytes
from pipelines.samples.names import Captions

T = TypeVar("T")
Row = Mapping[str, Any]
Progress = Callable[[int, int | None], None]
NOTICE = "NOTICE.txt"
ROW_GROUP_ROWS = 64

# `item` is one picture (or renderings of one drawing); `concept` is what it shows. A split by `concept` keeps the
# drawings of one thing, or a series under one title, on one side.
COMMON_FIELDS = (
    pa.field("key", pa.string()),
    pa.field("item", pa.string()),
    pa.field("concept", pa.string()),
    pa.field("source", pa.string()),
    pa.field("image", pa.binary()),
    pa.field("caption", pa.list_(pa.string())),
    pa.field("keywords", pa.list_(pa.string())),
    pa.field("keywords_zh", pa.list_(pa.string())),
    pa.field("group", pa.string()),
    pa.field("split", pa.string()),
)
# Shares of the concepts; the remaining ones are for training.
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
SCHEMA = pa.schema(COMMON_FIELDS)


@dataclass(frozen=True, kw_only=True)
class CorpusInfo:
    """Summary of a corpus that was built.

    Attributes:
        path: the Parquet file.
        concepts: number of distinct concepts.
        pictures: number of pictures.
        license: short name of the licence.
        dropped: reason → number of pictures left out.
    """

    path: str
    concepts: int
    pictures: int
    license: str
    dropped: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


def no_progress(done: int, total: int | None) -> None:
    """Report nothing."""


def split_of(concept: str) -> str:
    """`test`, `validation` or `train`, by a hash of the concept: the same in every corpus that draws it."""
    share = int(digest_bytes(concept.encode()), 16) / 2.0**64
    return "test" if share < TEST_SHARE else "validation" if share < TEST_SHARE + VALIDATION_SHARE else "train"


def captions_of(labels: Sequence[str], tags: Sequence[str], tags_zh: Sequence[str], style: Captions) -> list[str]:
    """The captions of a picture: its labels; with `label+tags` its tags as one more caption per language.

    >>> captions_of(["dog", "狗"], ["pet", "animal"], ["宠物"], "label+tags")
    ['dog', '狗', 'pet, animal', '宠物']
    """
    if style == "label":
        return list(labels)
    joined = [", ".join(tags), "、".join(tags_zh)]
    return [*labels, *(words for words in joined if words and words not in labels)]


def shuffled(candidates: Iterable[T], pictures: int | None, seed: int) -> list[T]:
    """The order in which to try candidates: as given if `pictures` is None (all wanted), else shuffled by the seed."""
    order = list(candidates)
    if pictures is not None:
        random.Random(seed).shuffle(order)
    return order


def first_by_key(rows: Iterable[Row], pictures: int | None) -> Iterable[Row]:
    """All rows as given, or only the first `pictures` rows, ordered by key. Lazy: no further rows are made."""
    return rows if pictures is None else sorted(islice(rows, pictures), key=lambda row: str(row["key"]))


def write_corpus(
    path: Path,
    rows: Iterable[Row],
    *,
    notice: str,
    license: str,
    dropped: Mapping[str, int],
    schema: pa.Schema = SCHEMA,
    total: int | None = None,
    progress: Progress = no_progress,
) -> CorpusInfo:
    """Write rows as one Parquet file with its notice beside it. If an equal file exists, it stays untouched.

    Args:
        path: the Parquet file; its folder is created if missing.
        rows: one row per picture, with the columns of `schema` except for `split`.
        notice: text of the licence and the attribution.
        license: short name of the licence.
        dropped: reason → number of pictures left out; read after the last row, so it may be filled while rows are made.
        schema: `SCHEMA`, possibly with more columns.
        total: number of rows to come, if known.
        progress: called with (rows written, total).

    Raises:
        ValueError: there are no rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    concepts: set[str] = set()
    done = 0
    with _replacing(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        rows = iter(rows)
        while part := list(islice(rows, ROW_GROUP_ROWS)):
            writer.write_table(
                pa.Table.from_pylist([{**row, "split": split_of(row["concept"])} for row in part], schema=schema)
            )
            concepts.update(row["concept"] for row in part)
            done += len(part)
            progress(done, total)
        if not done:
            raise ValueError(f"corpus {path}: no usable picture; left out: {dict(dropped) or 'none'}")
    (path.parent / NOTICE).write_text(notice, encoding="utf-8")
    counts = {reason: dropped[reason] for reason in sorted(dropped) if dropped[reason]}
    return CorpusInfo(path=str(path), concepts=len(concepts), pictures=done, license=license, dropped=counts)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write, which replaces the path at the end and is deleted on an error."""
    partial = path.with_suffix(".partial")
    try:
        yield partial
        keep_if_equal(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def keep_if_equal(new: Path, old: Path) -> None:
    """Replace the old file with the new one unless they are equal.

    A file with another modification time would count as changed, and its rows as new.
    """
    if old.is_file() and filecmp.cmp(new, old, shallow=False):
        new.unlink()
    else:
        new.replace(old)
