"""The stages of a run, built once: read → decode → encode → stage. Every engine calls these functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipelines.ingest.sink.staging import Files, StagedGroup, stage_blocks
from pipelines.ingest.stages.decoding import DecodeSettings, decode_safely
from pipelines.ingest.stages.encoding import EncodeBlocks, EncodeSettings
from pipelines.ingest.stages.pools import PoolPlan
from pipelines.ingest.stages.reading import ReadSettings, ShardWork, read_blocks
from pipelines.ingest.stages.reuse import KnownVectors
from pipelines.sources.base import Source
from pipelines.store.storage import Storage, TableRef


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The settings of all stages: plain data, pickled to tasks, actors and worker processes.

    Attributes:
        source: the corpus.
        storage: how to reach the corpus.
        known: vectors of an earlier version of the table, by digest; None if there are none to reuse.
        reading: settings of the read stage.
        decoding: settings of the decode stage; None if no pictures are embedded.
        encoding: settings of the encode stage.
        table: the table that fragments are staged for.
        schema: the table's schema.
        files: the corpus files; staging uses them to find rows that replace others.
        pools: how many processes or actors run the stages, and the cores and GPUs of each.
    """

    source: Source
    storage: Storage
    known: KnownVectors | None
    reading: ReadSettings
    decoding: DecodeSettings | None
    encoding: EncodeSettings
    table: TableRef
    schema: pa.Schema
    files: Files
    pools: PoolPlan

    def read(self, work: Iterable[ShardWork]) -> Iterator[pa.Table]:
        """Blocks of records that are not settled yet, with the vectors that the table already holds."""
        blocks = read_blocks(self.source, work, self.reading, self.storage)
        return blocks if self.known is None else map(self.known.attach, blocks)

    def decode(self, block: pa.Table) -> pa.Table:
        """The block with pixels, or unchanged if no pictures are embedded."""
        return block if self.decoding is None else decode_safely(block, self.decoding)

    def encoder(self) -> EncodeBlocks:
        """The encode stage, with its encoder loaded."""
        return EncodeBlocks(self.encoding)

    def stage(self, blocks: Iterable[pa.Table]) -> StagedGroup:
        """Encoded blocks, written as fragments that a commit can publish."""
        return stage_blocks(self.table, self.schema, *blocks, files=self.files)
