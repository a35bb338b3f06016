"""Files of one record each are read several at once, in their order; what fails, fails as it would alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from corpora import pairs, write_folder

from pipelines.contract import Columns
from pipelines.embedding.stages.reading import ReadSettings, ShardWork, read_blocks
from pipelines.sources import Source, open_source
from pipelines.sources.base import Shard
from pipelines.sources.records import records_table
from pipelines.storage import Storage

SETTINGS = ReadSettings(root="/c", keyed=True, needs=frozenset(), fetch=True, block_rows=16, fetch_threads=4)


@dataclass
class Meeting:
    """A source whose first reads wait for each other, and whose others take some moment or other."""

    together: threading.Barrier
    read_: list[str] = field(default_factory=list)
    refused: str = ""

    def schema(self) -> pa.Schema:
        return pa.schema([])

    def read(self, shard: Shard) -> Iterator[pa.Table]:
        self.read_.append(shard.uri)
        if len(self.read_) <= self.together.parties:
            self.together.wait(timeout=20)
        time.sleep(random.Random(shard.uri).uniform(0, 0.005))
        if shard.uri == self.refused:
            raise FileNotFoundError(shard.uri)
        yield records_table([{"key": shard.uri, "captions": [shard.uri]}], pa.table({"a": [1]}).drop_columns(["a"]))


def work_of(n: int) -> list[ShardWork]:
    uris = [f"/c/{i:03}.jpg" for i in range(n)]
    return [ShardWork(shard=Shard(uri=u, version="1", start=0, rows=1, size_bytes=1), shard_id=u) for u in uris]


def keys(source: Meeting, n: int) -> list[str]:
    blocks = read_blocks(source, work_of(n), SETTINGS, Storage())  # type: ignore[arg-type]
    return [key for block in blocks for key in block["row_id"].to_pylist()]


def test_several_are_read_at_once_and_keep_their_order() -> None:
    source = Meeting(threading.Barrier(3))
    assert keys(source, 50) == [f"/c/{i:03}.jpg" for i in range(50)]
    assert sorted(source.read_) == sorted(set(source.read_)), "each is read once"


def test_no_more_are_read_ahead_than_threads_fetch() -> None:
    """What is held is bounded: a picture may have many megabytes."""
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
