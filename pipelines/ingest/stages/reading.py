"""The read stage: turns shards into blocks of rows with identities and picture bytes.

A record with several captions becomes several rows. Records that the table already holds are dropped before their
pictures are fetched.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.ingest.identity import (
    PICTURE_DIGEST,
    PictureDigest,
    derived_row_id,
    nth_row_id,
    picture_digest,
    text_digest,
)
from pipelines.rows.blocks import (
    LAST,
    MESSAGE,
    REASON,
    STAGE,
    as_binary,
    read_schema,
    shorten,
    views,
    with_seconds,
)
from pipelines.rows.contract import (
    CAPTION,
    IMAGE,
    IMAGE_URI,
    ITEM_ID,
    PICTURE,
    POSITION,
    RECORD_FIELDS,
    RECORD_SCHEMA,
    ROW_ID,
    SHARD,
    TEXT,
    Mark,
    Reason,
    Stage,
)
from pipelines.sources.base import CorpusShard, Source
from pipelines.sources.locate import read_images
from pipelines.store.faults import fault
from pipelines.store.retries import read_again, refusals
from pipelines.store.storage import Storage

_CHUNK_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """A shard to read, and its record ranges that are already settled.

    Attributes:
        shard: the shard.
        shard_id: its id in the table.
        path: the path of its file below the root of its corpus, from which row ids are derived; None: its URI.
        done: settled ranges of record positions as (start, stop), stop exclusive.
    """

    shard: CorpusShard
    shard_id: str
    path: str | None = None
    done: tuple[tuple[int, int], ...] = ()

    def is_done(self, position: int) -> bool:
        """Whether an earlier run settled the record."""
        return any(start <= position < stop for start, stop in self.done)


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """Settings of the read stage: plain data, pickled to the workers.

    Attributes:
        root: the corpus' folder, absolute.
        keyed: whether a key column was named (a null key is then a reject).
        needs: modalities that every row must have.
        fetch: whether pictures are read at all.
        block_rows: most rows in a block.
        block_bytes: size in bytes at which a block is closed.
        fetch_threads: number of pictures fetched at once, and of single-record files read at once.
        picture_digest: how the table tells pictures apart.
    """

    root: str
    keyed: bool
    needs: frozenset[str]
    fetch: bool
    block_rows: int
    block_bytes: int = 64 << 20
    fetch_threads: int = 8
    picture_digest: PictureDigest = PICTURE_DIGEST


def read_blocks(
    source: Source, work: Iterable[ShardWork], settings: ReadSettings, storage: Storage
) -> Iterator[pa.Table]:
    """All blocks of the given shards, in order.

    Raises:
        FileNotFoundError: a shard's file was listed and is gone.
        PermissionError: the store refuses the credentials.
        OSError: a shard's file cannot be read at all.
    """
    builder = _BlockBuilder(source.schema(), settings)
    for is_record, items in groupby(work, key=lambda item: item.shard.rows == 1):
        read = _read_ahead if is_record else _read_in_turn
        for chunk, item in read(source, items, settings, storage):
            yield from builder.add(chunk, item)
    yield from builder.flush()


def _read_in_turn(
    source: Source, work: Iterable[ShardWork], settings: ReadSettings, storage: Storage
) -> Iterator[tuple[_Chunk, ShardWork]]:
    """The chunks of shards, with their pictures fetched."""
    for item in work:
        for chunk in _chunks(source, item, min(_CHUNK_ROWS, settings.block_rows)):
            if settings.fetch:
                _fetch(chunk.records, settings, storage)
            yield chunk, item


def _read_ahead(
    source: Source, work: Iterable[ShardWork], settings: ReadSettings, storage: Storage
) -> Iterator[tuple[_Chunk, ShardWork]]:
    """`_read_in_turn` for shards of one record each (the files of a folder), several at once.

    One after the other, each file would wait for its own response from the store, and for all of its retries.
    """
    coming: deque[Future[list[tuple[_Chunk, ShardWork]]]] = deque()
    pool = ThreadPoolExecutor(settings.fetch_threads)
    try:
        for item in work:
            coming.append(pool.submit(lambda item: list(_read_in_turn(source, [item], settings, storage)), item))
            if len(coming) > settings.fetch_threads:
                yield from coming.popleft().result()
        while coming:
            yield from coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(kw_only=True)
class _Chunk:
    """Consecutive records of a shard that are still to do.

    Attributes:
        positions: each record's position in the shard.
        records: each record's contract fields.
        passthrough: each record's other columns, unchanged.
        ends_shard: whether the chunk's last record is the last one of the shard.
        end: number of records of the shard, if all that can be said of it is where it ends; else None.
    """

    positions: list[int]
    records: list[dict[str, Any]]
    passthrough: pa.Table
    ends_shard: bool = False
    end: int | None = None


def _chunks(source: Source, work: ShardWork, rows: int) -> Iterator[_Chunk]:
    """The records still to do, in chunks of at most `rows`; the chunk that ends the shard is marked."""
    position = 0
    held: _Chunk | None = None
    for table in read_again(lambda: source.read(work.shard), work.shard.uri):
        for batch in table.to_batches(max_chunksize=rows):
            chunk = _chunk(pa.Table.from_batches([batch]), position, work)
            position += batch.num_rows
            if held is not None:
                yield held
            held = chunk
    if position == 0:
        held = _empty_shard(source.schema(), work.shard)
    if held is not None:
        held.ends_shard = bool(held.positions) and held.positions[-1] == max(position - 1, 0)
        if not held.ends_shard and work.shard.rows is None:
            # The last record was settled earlier by a commit that did not know, or whose record was lost.
            held.end = position
        yield held


def _chunk(table: pa.Table, first: int, work: ShardWork) -> _Chunk:
    wanted = [i for i in range(table.num_rows) if not work.is_done(first + i)]
    if len(wanted) < table.num_rows:
        table = table.take(pa.array(wanted, pa.int64()))
    return _Chunk(
        positions=[first + i for i in wanted],
        records=_records(table.select(RECORD_SCHEMA.names).rename_columns(RECORD_FIELDS)),
        passthrough=table.drop_columns(RECORD_SCHEMA.names),
    )


def _records(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as dictionaries. Pictures are views of the table: a copy of a large one costs a tenth of decoding it."""
    images = table[IMAGE]
    pictures = views(images)
    records: list[dict[str, Any]] = table.drop_columns([IMAGE]).to_pylist()
    for record, is_there in zip(records, images.is_valid().to_pylist(), strict=True):
        record[IMAGE] = memoryview(next(pictures)) if is_there else None
    return records


def _empty_shard(passthrough: pa.Schema, shard: CorpusShard) -> _Chunk:
    """A shard without records becomes a reject: a file of the corpus never disappears silently."""
    record: dict[str, Any] = dict.fromkeys(RECORD_FIELDS)
    message = f"{shard.uri} holds no record that could be read"
    record |= {"image_uri": shard.uri, "reason": Reason.BAD_RECORD.value, "message": message}
    return _Chunk(positions=[0], records=[record], passthrough=_nulls(passthrough))


def _nulls(schema: pa.Schema) -> pa.Table:
    """One row of nulls."""
    return pa.table([pa.nulls(1, field.type) for field in schema], schema=schema)


def _fetch(records: list[dict[str, Any]], settings: ReadSettings, storage: Storage) -> None:
    """Read the pictures that records name by URI, in place. A failure marks its record.

    Raises:
        PermissionError: the store refuses the credentials; see `Refusals`.
    """
    missing = [r for r in records if r["image"] is None and r["image_uri"] and r["reason"] is None]
    uris = list(dict.fromkeys(r["image_uri"] for r in missing))
    found = dict(zip(uris, read_images(uris, storage, threads=settings.fetch_threads), strict=True))
    for uri, data in found.items():
        if isinstance(data, bytes):
            refusals().served(uri)
    for uri, data in found.items():
        if isinstance(data, Exception) and refusals().stops(uri, data):
            raise data
    for record in missing:
        data = found[record["image_uri"]]
        if isinstance(data, bytes):
            record["image"] = data
            continue
        lost = isinstance(data, FileNotFoundError)
        record["reason"] = (Reason.IMAGE_NOT_FOUND if lost else Reason.FETCH_FAILED).value
        record["message"] = storage.redact(f"{record['image_uri']}: {data}")


def _rows(record: dict[str, Any], position: int, work: ShardWork, settings: ReadSettings) -> list[dict[str, Any]]:
    """The rows of a record, one per caption. The first one carries the picture's bytes."""
    image = record["image"]
    captions = [text for text in record["captions"] or [] if text and text.strip()]
    picture = picture_digest(image, settings.picture_digest) if image is not None else None
    reason, message = _verdict(record, captions, settings)
    path = work.shard.uri if work.path is None else work.path
    key, index = record["key"], work.shard.first_row + position
    rows = []
    for n, caption in enumerate(captions or [None]):
        derived = derived_row_id(path, index, picture, caption) if key is None else nth_row_id(key, n)
        rows.append(
            {
                ROW_ID: derived,
                ITEM_ID: record["item"] or picture or derived,
                CAPTION: caption,
                IMAGE_URI: record["image_uri"],
                SHARD: work.shard_id,
                POSITION: position,
                LAST: False,
                PICTURE: picture,
                TEXT: text_digest(caption) if caption is not None else None,
                STAGE: Stage.READ.value if reason else None,
                REASON: reason,
                MESSAGE: shorten(message) if message else None,
                IMAGE: image if n == 0 and not reason else None,
            }
        )
    return rows


def _verdict(record: dict[str, Any], captions: list[str], settings: ReadSettings) -> tuple[str | None, str | None]:
    """Why a record is rejected at the read stage, as (reason, message); (None, None) if it is not."""
    if record["reason"]:
        return record["reason"], record["message"]
    if settings.keyed and record["key"] is None:
        return Reason.MISSING_KEY.value, "the key column is null in this row"
    has_image = record["image"] is not None or (not settings.fetch and record["image_uri"])
    has_neither = not has_image and not captions
    if not has_image and ("image" in settings.needs or (has_neither and settings.fetch)):
        return Reason.MISSING_IMAGE.value, "the row has no picture"
    if not captions and ("text" in settings.needs or has_neither):
        return Reason.MISSING_CAPTION.value, "the row has no caption"
    return None, None


def _bytes_of(value: Any) -> int:
    """The approximate size of a value in a column, in bytes."""
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, (bytes, memoryview)) else 8


class _BlockBuilder:
    """Collects rows into blocks. A record is never split, and a picture that recurs in a block is kept once."""

    def __init__(self, passthrough: pa.Schema, settings: ReadSettings) -> None:
        self._passthrough = passthrough
        self._schema = read_schema(passthrough)
        self._own = {f.name: f.type for f in self._schema if f.name not in {IMAGE, *passthrough.names}}
        self._settings = settings
        self._reset()

    def _reset(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._others: list[pa.Table] = []
        self._pictures: set[str] = set()
        self._bytes = 0
        self._started = time.perf_counter()

    def add(self, chunk: _Chunk, work: ShardWork) -> Iterator[pa.Table]:
        """Add a chunk's rows; yields the block if they complete it."""
        rows: list[dict[str, Any]] = []
        origin: list[int] = []
        for i, (position, record) in enumerate(zip(chunk.positions, chunk.records, strict=True)):
            new = _rows(record, position, work, self._settings)
            rows += new
            origin += [i] * len(new)
            for row in new:
                row[LAST] = chunk.ends_shard and i == len(chunk.records) - 1
        for row in rows:
            self._keep_picture_once(row)
            self._bytes += sum(map(_bytes_of, row.values()))
        if rows:
            others = chunk.passthrough
            others = others.take(pa.array(origin, pa.int64())) if others.num_columns else others
            self._rows += rows
            self._others.append(others)
            self._bytes += others.nbytes
        if chunk.end is not None:
            self._add_end(chunk.end, work)
        if len(self._rows) >= self._settings.block_rows or self._bytes >= self._settings.block_bytes:
            yield from self.flush()

    def _add_end(self, records: int, work: ShardWork) -> None:
        """Add a mark that says how many records a shard has. Every stage passes it on as it does a rejected row."""
        row = dict.fromkeys(self._own) | {SHARD: work.shard_id, POSITION: records, LAST: True, IMAGE: None}
        row |= {STAGE: Mark.END.value, REASON: Mark.END.value}
        self._rows.append(row)
        self._others.append(_nulls(self._passthrough))

    def _keep_picture_once(self, row: dict[str, Any]) -> None:
        if row[IMAGE] is None:
            return
        if row[PICTURE] in self._pictures:
            row[IMAGE] = None
        else:
            self._pictures.add(row[PICTURE])

    def flush(self) -> Iterator[pa.Table]:
        """The rows so far as a block; yields nothing if there are none."""
        if self._rows:
            fault("read")
            yield self._taken()
        self._started = time.perf_counter()  # the time that consumers spend on the block is not reading time

    def _taken(self) -> pa.Table:
        """The rows as a block, each picture copied once. Their sources may be freed afterwards."""
        others = pa.concat_tables(self._others).combine_chunks()
        columns = {name: others[name] for name in others.column_names}
        columns |= {name: pa.array([row[name] for row in self._rows], kind) for name, kind in self._own.items()}
        columns[IMAGE] = as_binary(
            [None if row[IMAGE] is None else np.frombuffer(row[IMAGE], np.uint8) for row in self._rows]
        )
        block = pa.table([columns[name] for name in self._schema.names], schema=self._schema)
        seconds = time.perf_counter() - self._started
        self._reset()
        return with_seconds(block, "read", seconds)
