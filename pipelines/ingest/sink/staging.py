"""Staging: a group of encoded blocks is written as Lance fragments that no version of the table names yet.

Staging runs as a Ray task on references to blocks, so that the work of a lost worker is replayed from the same data.
The files of the lost attempt belong to no version and are never read.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.claims import Claim, claims_of_columns, file_of
from pipelines.ledger.rejects import REJECT_ID, REJECTS_SCHEMA, TOKEN
from pipelines.rows.blocks import (
    LAST,
    MESSAGE,
    OVERLONG,
    READY,
    REASON,
    REUSED,
    STAGE,
    shorten,
    timing_columns,
    unwrap,
)
from pipelines.rows.contract import CAPTION, IMAGE_URI, POSITION, ROW_ID, SHARD, Mark
from pipelines.rows.pace import BlockTime
from pipelines.rows.types import cast, first_misfit
from pipelines.store.faults import fault, fault_is_set
from pipelines.store.memory import freed_memory
from pipelines.store.retries import retry
from pipelines.store.storage import TableRef
from pipelines.tables.schemas import remedy
from pipelines.vectors.fused import with_fused

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Maintenance removes staged files that no version names. A job must not commit any that it may have removed.
STAGED_LIFE_S = 12 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Files:
    """The corpus files as a staging task needs them.

    Attributes:
        uris: file id → uri of the files that are read.
        bring_successors: whether rows of these files may replace rows that are in the table.
    """

    uris: dict[str, str] = field(default_factory=dict)
    bring_successors: bool = False


NO_FILES = Files()


@dataclass(frozen=True, kw_only=True)
class StagedGroup:
    """The result of a staging task, for the committer: plain data.

    Attributes:
        fragments: metadata of the written fragments, as JSON.
        token: random; its rejects carry it, and so does the commit by which they count.
        claims: the records that the group settles.
        rejects: rows of `REJECTS_SCHEMA`.
        rows: number of rows written to the fragments.
        blocks: number of blocks in the group.
        seconds: stage → worker seconds, summed over the group's rows.
        overlong: captions longer than the text tower reads.
        reused: vectors that the table already held, or that an actor had just made.
        started: when the first file may have been written, Unix seconds.
        files: file id → uri of the files that its shards belong to.
        times: when each block was ready, and the time that it took.
        successors: ids of its rows, written and rejected, if they may replace rows that are in the table; else empty.
    """

    fragments: tuple[str, ...]
    token: str
    claims: tuple[Claim, ...]
    rejects: pa.Table
    rows: int
    blocks: int
    seconds: dict[str, float]
    overlong: int
    reused: int
    started: float
    files: dict[str, str] = field(default_factory=dict)
    successors: tuple[str, ...] = ()
    times: tuple[BlockTime, ...] = ()


def stage_envelopes(table: TableRef, schema: pa.Schema, files: Files, *envelopes: pa.Table) -> StagedGroup:
    """`stage_blocks` as a Ray task: each argument is one of Ray's blocks, which wraps one or several of ours."""
    freed = freed_memory()
    group = stage_blocks(table, schema, *(block for envelope in envelopes for block in unwrap(envelope)), files=files)
    freed.give_back()
    return group


def stage_blocks(table: TableRef, schema: pa.Schema, *blocks: pa.Table, files: Files = NO_FILES) -> StagedGroup:
    """Write the good rows of `blocks` as fragments of `table`, and collect rejects and claims.

    Args:
        table: the table that gets the fragments; its dataset exists.
        schema: the table's schema. Columns that the blocks lack become null, except for fused vectors, which are
            computed.
        blocks: encoded blocks.
        files: the files of the corpus.

    Raises:
        ValueError: a value does not fit the table's type of its column.
        OSError: the store cannot be written.
        RuntimeError: Lance wrote another number of rows than it was given.
    """
    import time

    started, started_at = time.perf_counter(), time.time()
    fault("before_stage")
    group, ends = _without_ends(pa.concat_tables(blocks))
    token = uuid.uuid4().hex
    is_rejected = pc.is_valid(group[REASON])
    # A filter copies all vectors, and usually no row was rejected.
    kept = group.filter(pc.invert(is_rejected)) if pc.any(is_rejected).as_py() else group
    good = _conform(kept, schema, table, files)
    fragments = _write(table, good)
    seconds = {stage: pc.sum(group[name]).as_py() or 0.0 for stage, name in timing_columns(group.schema).items()}
    seconds["stage"] = time.perf_counter() - started
    fault("after_stage")
    names = {file_of(shard) for shard in [*pc.unique(group[SHARD]).to_pylist(), *(claim.shard for claim in ends)]}
    return StagedGroup(
        fragments=fragments,
        token=token,
        claims=(*claims_of_columns(group[SHARD], *map(_numpy, (group[POSITION], group[LAST], is_rejected))), *ends),
        rejects=_rejects(group.filter(is_rejected), token),
        rows=good.num_rows,
        blocks=len(blocks),
        seconds=seconds,
        overlong=pc.sum(group[OVERLONG]).as_py() or 0,
        reused=pc.sum(group[REUSED]).as_py() or 0,
        started=started_at,
        files={name: files.uris[name] for name in sorted(names) if name in files.uris},
        successors=tuple(group[ROW_ID].to_pylist()) if files.bring_successors else (),
        times=tuple(_block_time(block) for block in blocks if block.num_rows and READY in block.column_names),
    )


def _without_ends(group: pa.Table) -> tuple[pa.Table, list[Claim]]:
    """The rows, and a claim for each mark that only says where a shard ends; see `end_mark`."""
    is_mark = pc.equal(group[STAGE], Mark.END.value)
    if not pc.any(is_mark).as_py():
        return group, []
    marks = group.filter(pc.fill_null(is_mark, fill_value=False))
    ends = [
        Claim(shard=shard, start=stop, stop=stop, last=True, written=0, rejected=0)
        for shard, stop in zip(marks[SHARD].to_pylist(), marks[POSITION].to_pylist(), strict=True)
    ]
    return group.filter(pc.fill_null(pc.invert(is_mark), fill_value=True)), ends


def _block_time(block: pa.Table) -> BlockTime:
    columns = timing_columns(block.schema)
    decode_s, encode_s = (
        float(pc.sum(block[columns[stage]]).as_py()) if stage in columns else 0.0 for stage in ("decode", "encode")
    )
    ready = float(block[READY][0].as_py())
    return BlockTime(ready=ready, rows=block.num_rows, decode_s=decode_s, encode_s=encode_s)


def _conform(rows: pa.Table, schema: pa.Schema, table: TableRef, files: Files) -> pa.Table:
    columns = [
        _fitted(rows, field, table, files) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return with_fused(pa.table(columns, names=schema.names).cast(schema), schema)


def _fitted(rows: pa.Table, field: pa.Field, table: TableRef, files: Files) -> pa.ChunkedArray:
    """A column in the table's type.

    Raises:
        ValueError: a value does not fit; names its file and record, the column, both types and the remedy.
    """
    column = rows[field.name]
    try:
        return column if column.type == field.type else cast(column, field.type)
    except pa.ArrowInvalid:
        row = first_misfit(column, field.type)
    shard, position, value = rows[SHARD][row].as_py(), rows[POSITION][row].as_py(), column[row].as_py()
    file = files.uris.get(file_of(shard)) or rows[IMAGE_URI][row].as_py() or shard
    raise ValueError(
        f"{file}: column {field.name!r} is {column.type}, but {field.type} in table {table}, which cannot hold "
        f"{shorten(repr(value))} (record {position} of its shard); {remedy(field.name, column.type, field.type)}. "
        "The table is as of its last commit"
    )


def _write(table: TableRef, rows: pa.Table) -> tuple[str, ...]:
    from lance.fragment import write_fragments

    from pipelines.tables.opening import translate

    if rows.num_rows == 0:
        return ()
    if fault_is_set("mid_stage"):
        write_fragments(rows.slice(0, rows.num_rows // 2), table.uri, mode="append", storage_options=table.options)
        fault("mid_stage")
    try:
        # A failed attempt leaves files that no version names; only the last attempt's fragments count.
        written = retry(
            lambda: write_fragments(rows, table.uri, mode="append", storage_options=table.options), table.uri
        )
    except OSError as error:
        raise translate(error, table.uri) from error
    if (n := sum(fragment.physical_rows for fragment in written)) != rows.num_rows:
        raise RuntimeError(f"table {table}: staged {n} rows instead of {rows.num_rows}; none was committed")
    return tuple(json.dumps(fragment.to_json()) for fragment in written)


def _numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    return column.to_numpy()


def _rejects(rows: pa.Table, token: str) -> pa.Table:
    """Rejected rows in the rejects table's schema. Each caption of a record gets an id of its own."""
    shards, positions = rows[SHARD].to_pylist(), rows[POSITION].to_pylist()
    seen: dict[tuple[str, int], int] = {}
    ids = []
    for shard, position in zip(shards, positions, strict=True):
        n = seen.get((shard, position), 0)
        seen[shard, position] = n + 1
        ids.append(f"{token}:{shard}:{position}:{n}")
    columns = {
        REJECT_ID: ids,
        ROW_ID: rows[ROW_ID],
        "source": rows[IMAGE_URI],
        "stage": rows[STAGE],
        "reason": rows[REASON],
        "message": rows[MESSAGE],
        "attempt": pa.array([1] * rows.num_rows, pa.int32()),
        CAPTION: rows[CAPTION],
        SHARD: rows[SHARD],
        POSITION: rows[POSITION],
        TOKEN: pa.array([token] * rows.num_rows, pa.string()),
    }
    return pa.table(columns).cast(REJECTS_SCHEMA)
