"""Several single-record files are read at once, in order; a failing one fails as it would alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pytest
from corpora import pairs, write_folder
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest.stages.reading import ReadSettings, ShardWork, read_blocks
from pipelines.rows.blocks import REASON
from pipelines.rows.contract import CAPTION, IMAGE, PICTURE, Columns
from pipelines.sources import Source, open_source
from pipelines.sources.base import CorpusShard
from pipelines.sources.records import records_table
from pipelines.store.storage import Storage

SETTINGS = ReadSettings(root="/c", keyed=True, needs=frozenset(), fetch=True, block_rows=16, fetch_threads=4)


@dataclass
class Meeting:
    """A source whose first reads wait for each other, and whose other reads take varying time."""

    together: threading.Barrier
    read_: list[str] = field(default_factory=list)
    refused: str = ""

    def schema(self) -> pa.Schema:
        return pa.schema([])

    def read(self, shard: CorpusShard) -> Iterator[pa.Table]:
        self.read_.append(shard.uri)
        if len(self.read_) <= self.together.parties:
            self.together.wait(timeout=20)
        time.sleep(random.Random(shard.uri).uniform(0, 0.005))
        if shard.uri == self.refused:
            raise FileNotFoundError(shard.uri)
        yield records_table([{"key": shard.uri, "captions": [shard.uri]}], pa.table({"a": [1]}).drop_columns(["a"]))


def work_of(n: int) -> list[ShardWork]:
    uris = [f"/c/{i:03}.jpg" for i in range(n)]
    return [ShardWork(shard=CorpusShard(uri=u, version="1", start=0, rows=1, size_bytes=1), shard_id=u) for u in uris]


def keys(source: Meeting, n: int) -> list[str]:
    blocks = read_blocks(source, work_of(n), SETTINGS, Storage())  # type: ignore[arg-type]
    return [key for block in blocks for key in block["row_id"].to_pylist()]


def test_several_are_read_at_once_and_keep_their_order() -> None:
    source = Meeting(threading.Barrier(3))
    assert keys(source, 50) == [f"/c/{i:03}.jpg" for i in range(50)]
    assert sorted(source.read_) == sorted(set(source.read_)), "each is read once"


def test_no_more_are_read_ahead_than_threads_fetch() -> None:
    """The number of held pictures is bounded: a picture may have many megabytes."""
    source = Meeting(threading.Barrier(1))
    blocks = read_blocks(source, work_of(200), SETTINGS, Storage())  # type: ignore[arg-type]
    next(blocks)
    time.sleep(0.1)
    assert len(source.read_) <= SETTINGS.block_rows + 2 * SETTINGS.fetch_threads
    blocks.close()
    read = len(source.read_)
    time.sleep(0.05)
    assert len(source.read_) == read, "a reader that is let go reads no further"


def test_a_file_that_is_gone_ends_the_reading_with_its_own_error() -> None:
    source = Meeting(threading.Barrier(1), refused="/c/007.jpg")
    with pytest.raises(FileNotFoundError, match=r"007\.jpg was listed and is gone"):
        keys(source, 40)


def test_a_folder_reads_as_its_files_do_one_by_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", pairs(40))
    source: Source = open_source(str(folder), columns=Columns(key="stem"), storage=Storage(), format="auto")
    work = [ShardWork(shard=shard, shard_id=shard.uri) for shard in source.shards()]
    together = pa.concat_tables(read_blocks(source, work, SETTINGS, Storage()))
    alone = pa.concat_tables([b for item in work for b in read_blocks(source, [item], SETTINGS, Storage())])
    timed = [name for name in together.column_names if pa.types.is_floating(together.schema.field(name).type)]
    assert together.drop_columns(timed).equals(alone.drop_columns(timed))
    assert together.num_rows == 40
    assert all(together["image"].to_pylist())


PICTURES = st.one_of(st.none(), st.binary(max_size=3))


@dataclass
class Given:
    """A source of one shard with the given tables."""

    tables: list[list[tuple[bytes | None, list[str]]]]

    def schema(self) -> pa.Schema:
        return pa.schema([("n", pa.int64())])

    def read(self, shard: CorpusShard) -> Iterator[pa.Table]:
        n = 0
        for records in self.tables:
            numbers = range(n, n := n + len(records))
            fields = [{"key": str(i), "image": r[0], "captions": r[1]} for i, r in zip(numbers, records, strict=True)]
            yield records_table(fields, pa.table({"n": list(numbers)}, schema=self.schema()))


@given(
    st.lists(st.lists(st.tuples(PICTURES, st.lists(st.sampled_from(["a", "b"]), max_size=2)), max_size=5), max_size=5),
    st.integers(1, 6),
    st.integers(1, 200),
    st.sets(st.integers(0, 24)),
)
def test_blocks_hold_what_the_records_hold(
    tables: list[list[tuple[bytes | None, list[str]]]], block_rows: int, block_bytes: int, done: set[int]
) -> None:
    """Each picture's bytes are in a block once, for any input batches and any settled records."""
    settings = replace(SETTINGS, block_rows=block_rows, block_bytes=block_bytes)
    shard = CorpusShard(uri="/c/x", version="1", start=0, rows=25, size_bytes=1)
    work = ShardWork(shard=shard, shard_id="x", done=tuple((n, n + 1) for n in done))
    records = [record for table in tables for record in table]
    wanted = [
        (n, caption, image, image is None and not captions)
        for n, (image, captions) in enumerate(records)
        if n not in done
        for caption in captions or [None]
    ]
    found = []
    for block in read_blocks(Given(tables), [work], settings, Storage()):  # type: ignore[arg-type]
        assert all(column.num_chunks == 1 for column in block.columns), "as an envelope takes it in one batch"
        rows = block.select(["n", CAPTION, IMAGE, PICTURE, REASON]).to_pylist()
        held = [row[PICTURE] for row in rows if row[IMAGE] is not None]
        assert len(held) == len(set(held))
        bytes_of = {row[PICTURE]: row[IMAGE] for row in rows if row[IMAGE] is not None}
        found += [
            (r["n"], r[CAPTION], bytes_of.get(r[PICTURE]), r[REASON] is not None) for r in rows if r["n"] is not None
        ]
    assert found == wanted
