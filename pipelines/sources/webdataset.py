"""WebDataset tars as img2dataset writes them: `000.jpg`, `000.txt` and `000.json` make one record."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import pyarrow as pa

from pipelines.rows.contract import RESERVED, Columns
from pipelines.sources.base import CorpusShard, Source
from pipelines.sources.empty import EmptySource
from pipelines.sources.file_names import has_bad_name
from pipelines.sources.listing import FileInfo, open_shard, well_named
from pipelines.sources.records import (
    as_captions,
    as_key,
    bad_record,
    badly_named,
    check_encodable,
    check_passthrough,
    check_roles,
    records_table,
)
from pipelines.sources.tar_samples import TarReader, TarSample
from pipelines.sources.values import TypeTally, adopted, fit_table, without_null_types
from pipelines.store.storage import Storage

_KEY = "__key__"
_BATCH_BYTES = 8 << 20
_BATCH_RECORDS = 256
_READ_AHEAD_BYTES = 8 << 20
_SAMPLE_TARS = 8
_SAMPLE_RECORDS = 1_000


@dataclass(frozen=True, kw_only=True)
class WebDatasetSource:
    """A corpus of tars. A sample of the first tars decides the types of the JSON fields once.

    A JSON field that is not in the sample is dropped. A value that does not fit its column becomes null.

    Attributes:
        columns: the roles that the user named.
        passthrough: the fields that go to the table. A field without a value in the sample is text.
        guessed: the same fields as the sample shows them; the type is null where it holds no value.
        has: the modalities that the sampled records hold.
        storage: how to reach the tars.
    """

    columns: Columns
    passthrough: pa.Schema
    guessed: pa.Schema
    has: frozenset[str]
    storage: Storage
    _files: tuple[FileInfo, ...] = field(default=(), repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": ()}

    def schema(self) -> pa.Schema:
        """The fields that pass through to the table."""
        return self.passthrough

    def adopting(self, table: pa.Schema) -> WebDatasetSource:
        """The same corpus with a table's types; see `adopted`. A sample of whole numbers may be one of floats."""
        floats = {f.name for f in table if pa.types.is_floating(f.type)}
        known = adopted(self.guessed, table)
        wide = [f.with_type(pa.float64()) if f.name in floats and pa.types.is_integer(f.type) else f for f in known]
        return replace(self, passthrough=without_null_types(pa.schema(wide)))

    def modalities(self) -> frozenset[str]:
        """The modalities that the sampled records hold."""
        return self.has

    def shards(self) -> list[CorpusShard]:
        """One shard per tar."""
        return [_whole(info) for info in self._files]

    def read(self, shard: CorpusShard) -> Iterator[pa.Table]:
        """The records of a tar. A torn end becomes one reject after the records before it.

        Raises:
            OSError: the tar cannot be opened, changed after it was listed, or the store fails.
        """
        if has_bad_name(shard.version):
            yield badly_named(shard, self.schema())
            return
        batch: list[TarSample] = []
        size = 0
        for sample in _samples(shard, TarReader(uri=shard.uri, columns=self.columns), self.storage):
            batch.append(sample)
            size += len(sample.image or b"")
            if size >= _BATCH_BYTES or len(batch) >= _BATCH_RECORDS:
                yield self._table(batch)
                batch, size = [], 0
        if batch:
            yield self._table(batch)

    def _table(self, samples: list[TarSample]) -> pa.Table:
        records = [self._record(sample) for sample in samples]
        return records_table(records, fit_table([sample.meta for sample in samples], self.passthrough))

    def _record(self, sample: TarSample) -> dict[str, Any]:
        columns, meta = self.columns, sample.meta
        key = sample.key if columns.key == _KEY else meta.get(columns.key or "")
        item = sample.key if columns.item == _KEY else meta.get(columns.item or "")
        ids = {"key": as_key(key), "item": as_key(item)}
        if sample.error is not None:
            return ids | bad_record(sample.error, sample.image_uri)
        caption = sample.text if sample.text is not None else meta.get(columns.caption or "caption")
        return ids | {"image": sample.image, "image_uri": sample.image_uri, "captions": as_captions(caption)}


def open_webdataset(corpus: str, files: list[FileInfo], columns: Columns, storage: Storage) -> Source:
    """The source of a corpus of tars; reads the beginnings of the first ones.

    Args:
        corpus: the corpus as the user named it, for messages.
        files: the tars.
        columns: `key` and `item` name `__key__` or a JSON field, `caption` a suffix or a JSON field, `image` a suffix.
        storage: how to reach them.

    Raises:
        ValueError: a named field is in no sampled record, a field's name is reserved, or no record can be read.
    """
    sampled = _sample(well_named(files, corpus), columns, storage)
    if not sampled and len(files) <= _SAMPLE_TARS:
        return EmptySource(files=tuple(files))
    whole = [sample for sample in sampled if sample.error is None]
    if sampled and not whole:
        raise ValueError(f"corpus {corpus}: no record can be read; {sampled[0].error}")
    tally = TypeTally()
    for sample in whole:
        tally.add(sample.meta)
    check_encodable(tally.names(), corpus)
    _check(corpus, columns, tally.names(), {suffix[1:] for sample in whole for suffix in sample.suffixes})
    ids = {name for name in (columns.key, columns.item) if name in RESERVED}
    guessed = tally.schema(without={columns.caption or "caption"} | ids)
    check_passthrough(guessed.names, corpus)
    has = {
        "image": any(sample.has_picture for sample in whole),
        "text": any(sample.text or sample.meta.get(columns.caption or "caption") for sample in whole),
    }
    return WebDatasetSource(
        columns=columns,
        passthrough=without_null_types(guessed),
        guessed=guessed,
        has=frozenset(name for name, there in has.items() if there),
        storage=storage,
        _files=tuple(files),
    )


def _check(corpus: str, columns: Columns, fields: list[str], suffixes: set[str]) -> None:
    if columns.uri is not None:
        raise ValueError(
            f"corpus {corpus}: --columns.uri {columns.uri!r}: a tar holds its pictures itself; omit the option"
        )
    check_roles(columns, [_KEY, *fields], corpus, roles=("key", "item"))
    check_roles(columns, [*sorted(suffixes), *fields], corpus, roles=("caption",))
    check_roles(columns, sorted(suffixes), corpus, roles=("image",))


def _sample(files: list[FileInfo], columns: Columns, storage: Storage) -> list[TarSample]:
    """The first records of the first tars, without the pictures' bytes."""
    tars = files[:_SAMPLE_TARS]
    each = math.ceil(_SAMPLE_RECORDS / len(tars))

    def head(info: FileInfo) -> list[TarSample]:
        reader = TarReader(uri=info.uri, columns=columns, pictures=False)
        return list(islice(_samples(_whole(info), reader, storage), each))

    with ThreadPoolExecutor(_SAMPLE_TARS) as pool:
        return [sample for samples in pool.map(head, tars) for sample in samples]


def _samples(shard: CorpusShard, reader: TarReader, storage: Storage) -> Iterator[TarSample]:
    with open_shard(shard, storage, cache_type="readahead", block_size=_READ_AHEAD_BYTES) as handle:
        yield from reader.samples(handle)


def _whole(info: FileInfo) -> CorpusShard:
    return CorpusShard(uri=info.uri, version=info.version, size_bytes=info.size)
