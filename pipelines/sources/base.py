"""The interface of a source: a listing of shards with stable identities, and a reader of one shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class CorpusShard:
    """A piece of the corpus that is read as a whole: a file, or a range of one.

    Attributes:
        uri: the file, absolute.
        version: a string that changes when the file's content does: the etag on S3, size and mtime on disk.
        start: first row group, record or byte of the range, depending on the format (0 if the format does not split
            files).
        stop: one past the last; -1 for the whole file.
        first_row: index within the file of the shard's first record.
        rows: number of records if it is known without reading; else None.
        size_bytes: estimated number of bytes to read.
        consumes: other files that belong to its records, absolute: the caption beside a picture. They are no records of
            their own any more.
    """

    uri: str
    version: str
    start: int = 0
    stop: int = -1
    first_row: int = 0
    rows: int | None = None
    size_bytes: int = 0
    consumes: tuple[str, ...] = ()


class Source(Protocol):
    """One format. A source is plain data (it is pickled to the workers) and opens nothing until a method is called."""

    def schema(self) -> pa.Schema:
        """The fields that pass through to the table, with their types. They never have a reserved name of the contract.

        Raises:
            ValueError: a named column is missing, or the corpus is not of this format.
            FileNotFoundError: nothing is there.
        """
        ...

    def modalities(self) -> frozenset[str]:
        """Which of `image` and `text` the corpus holds, judged by its layout (not by each row)."""
        ...

    def shards(self) -> list[CorpusShard]:
        """All shards, ordered by uri and start. The order and the cuts depend on the corpus alone."""
        ...

    def read(self, shard: CorpusShard) -> Iterator[pa.Table]:
        """The records of a shard in order, as tables of `RECORD_SCHEMA` + `schema()` of a few MiB each.

        Reading the same shard twice gives the same records in the same order. A record that cannot be read is a row
        with `reason` and `message` set. Pictures that are named by URI are not fetched here: `image` is null and
        `image_uri` is absolute.
        """
        ...


@runtime_checkable
class LooselyTyped(Source, Protocol):
    """A source whose files state no types, such as JSON and CSV: it guesses them from the values of each run."""

    def adopting(self, table: pa.Schema) -> Source:
        """The same corpus with a table's types in place of its own guesses, where these keep every value."""
        ...


def adopt_types(source: Source, table: pa.Schema) -> Source:
    """The source with a table's types if it guesses its types; else the source itself."""
    return source.adopting(table) if isinstance(source, LooselyTyped) else source
