"""Corpora described by one JSON file: parsed once per process, cut into ranges of records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa

from pipelines.rows.contract import Columns
from pipelines.sources.base import CorpusShard, Source
from pipelines.sources.empty import EmptySource
from pipelines.sources.listing import FileInfo, open_shard
from pipelines.sources.records import check_encodable, check_roles
from pipelines.sources.row_layout import Row, RowLayout, find_root, make_row_layout
from pipelines.sources.values import TypeTally
from pipelines.store.storage import Storage

RECORDS_A_SHARD = 1_024
URI, CAPTIONS = "image_path", "captions"
Parse = Callable[[Any], list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class JsonListSource:
    """A corpus in a JSON file.

    Attributes:
        info: the JSON file.
        parse: turns the parsed JSON into records with `URI`, `CAPTIONS` and pass-through fields. It is a module-level
            function, because the source is pickled.
        layout: the records' roles.
        storage: how to reach the file.
        rows: number of records.
    """

    info: FileInfo
    parse: Parse
    layout: RowLayout
    storage: Storage
    rows: int

    def schema(self) -> pa.Schema:
        """The fields that pass through to the table."""
        return self.layout.passthrough

    def adopting(self, table: pa.Schema) -> JsonListSource:
        """The same corpus with a table's types; see `adopted`."""
        return replace(self, layout=self.layout.adopting(table))

    def modalities(self) -> frozenset[str]:
        """Pictures and texts."""
        return self.layout.modalities()

    def shards(self) -> list[CorpusShard]:
        """Ranges of up to 1,024 records."""
        return [
            CorpusShard(
                uri=self.info.uri,
                version=self.info.version,
                start=start,
                stop=min(start + RECORDS_A_SHARD, self.rows),
                first_row=start,
                rows=min(RECORDS_A_SHARD, self.rows - start),
                size_bytes=self.info.size * RECORDS_A_SHARD // max(RECORDS_A_SHARD, self.rows),
            )
            for start in range(0, self.rows, RECORDS_A_SHARD)
        ]

    def read(self, shard: CorpusShard) -> Iterator[pa.Table]:
        """The records of a range.

        Raises:
            OSError: the file cannot be read, or changed after it was listed.
        """
        records = load(self.info, self.parse, self.storage)[shard.start : shard.stop]
        yield self.layout.table([Row(fields=fields) for fields in records], shard.uri)


def open_json_list(
    corpus: str, info: FileInfo, parse: Parse, folders: tuple[str, ...], columns: Columns, storage: Storage
) -> Source:
    """The source of a JSON file.

    Args:
        corpus: the corpus as the user named it, for messages.
        info: the JSON file.
        parse: turns the parsed JSON into records; see `JsonListSource`.
        folders: folders where the pictures may be, in search order.
        columns: `key` and `item` may name fields; the item defaults to `id`.
        storage: how to reach it.

    Raises:
        ValueError: the file is not of the format, or a named field is missing.
    """
    records = load(info, parse, storage)
    if not records:
        return EmptySource(files=(info,))
    tally = TypeTally()
    for record in records:
        tally.add(record)
    check_encodable(tally.names(), corpus)
    _check_roles(columns, tally.names(), corpus)
    item = columns.item or ("id" if "id" in tally.names() else None)
    roles = Columns(key=columns.key, item=item, uri=URI, caption=CAPTIONS)
    root = find_root([str(record.get(URI) or "") for record in records[:20]], folders, storage)
    layout = make_row_layout(tally.schema(), roles, root, corpus)
    return JsonListSource(info=info, parse=parse, layout=layout, storage=storage, rows=len(records))


@lru_cache(maxsize=2)
def load(info: FileInfo, parse: Parse, storage: Storage) -> list[dict[str, Any]]:
    """The records of a file.

    Raises:
        ValueError: names the file and the problem.
        OSError: the file cannot be read, or changed after it was listed.
    """
    with open_shard(CorpusShard(uri=info.uri, version=info.version), storage) as handle:
        data = handle.read()
    try:
        return parse(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"corpus {info.uri}: cannot be read as {parse.__module__.rpartition('.')[2]}: "
            f"{type(error).__name__}: {error}; give --format if it is something else"
        ) from error


def _check_roles(columns: Columns, names: list[str], corpus: str) -> None:
    for role in ("image", "uri", "caption"):
        if getattr(columns, role) is not None:
            raise ValueError(f"corpus {corpus}: --columns.{role}: the format fixes this field; omit the option")
    check_roles(columns, names, corpus, roles=("key", "item"))
