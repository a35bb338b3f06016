"""Claims: which records of which shards a commit settles. Removals: which records it takes out.

The unit of exactly-once is a range of record positions within a shard. A fragment claims the ranges whose rows (written
or rejected) it settles. A table's coverage is the union of the claims of its commits, less what later commits removed.
Ranges are used instead of whole shards so that the pipeline may cut blocks anywhere, and a large shard does not need a
commit of its own size.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_CLAIMS_PROPERTY = "isthmus.claims"
_REMOVALS_PROPERTY = "isthmus.removals"
_REJECTING_PROPERTY = "isthmus.rejecting"
_FILES_PROPERTY = "isthmus.files"


@dataclass(frozen=True, kw_only=True, order=True)
class Claim:
    """Records `start` to `stop` (exclusive) of a shard are settled.

    Attributes:
        shard: the shard's id.
        start: first record position.
        stop: one past the last record position.
        last: whether record `stop - 1` is the last one of the shard.
        written: number of rows in the table (a record with several captions gives several rows).
        rejected: number of rows in the rejects table.
    """

    shard: str
    start: int
    stop: int
    last: bool
    written: int
    rejected: int


@dataclass(frozen=True, kw_only=True, order=True)
class Removal:
    """The rows of records `start` to `stop` (exclusive) of a shard left the table or the rejects.

    Attributes:
        shard: the shard's id.
        start: first record position.
        stop: one past the last record position.
        rows: number of rows that left.
    """

    shard: str
    start: int
    stop: int
    rows: int


@dataclass(frozen=True, kw_only=True, order=True)
class Rejecting:
    """The rejects that count for records `start` to `stop` (exclusive) of a shard are those with this token.

    Rejects are written before the commit that settles their records, so other attempts may have left rejects of the
    same records. They do not count, and a later run deletes them.

    Attributes:
        shard: the shard's id.
        start: first record position.
        stop: one past the last record position.
        token: the token of the staged group; empty for rejects of tables that were made before there were tokens.
    """

    shard: str
    start: int
    stop: int
    token: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a commit did, as recorded in its transaction. Removals apply before claims.

    Attributes:
        claims: the records that it settled.
        removals: the records whose rows it removed.
        rejecting: which rejects count, for the claims that hold rejects.
        files: file id (the first half of a shard's id) → uri, for the shards named.
    """

    claims: tuple[Claim, ...] = ()
    removals: tuple[Removal, ...] = ()
    rejecting: tuple[Rejecting, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    def to_properties(self) -> dict[str, str]:
        """The change as properties of a transaction; parts that are empty are left out."""
        parts: dict[str, Any] = {
            _CLAIMS_PROPERTY: [[c.shard, c.start, c.stop, int(c.last), c.written, c.rejected] for c in self.claims],
            _REMOVALS_PROPERTY: [[r.shard, r.start, r.stop, r.rows] for r in self.removals],
            _REJECTING_PROPERTY: [[r.shard, r.start, r.stop, r.token] for r in self.rejecting],
            _FILES_PROPERTY: self.files,
        }
        return {name: _encode(data) for name, data in parts.items() if data}

    @classmethod
    def from_properties(cls, properties: dict[str, str]) -> Change:
        """The inverse of `to_properties`; other properties are ignored."""
        claims = tuple(
            Claim(shard=shard, start=start, stop=stop, last=bool(last), written=written, rejected=rejected)
            for shard, start, stop, last, written, rejected in _decode(properties.get(_CLAIMS_PROPERTY), [])
        )
        removals = _decode(properties.get(_REMOVALS_PROPERTY), [])
        rejecting = _decode(properties.get(_REJECTING_PROPERTY), None)
        if rejecting is None:  # a commit from before there were tokens
            rejecting = [[c.shard, c.start, c.stop, ""] for c in claims if c.rejected]
        return cls(
            claims=claims,
            removals=tuple(Removal(shard=s, start=a, stop=b, rows=n) for s, a, b, n in removals),
            rejecting=tuple(Rejecting(shard=s, start=a, stop=b, token=t) for s, a, b, t in rejecting),
            files=_decode(properties.get(_FILES_PROPERTY), {}),
        )


def file_of(shard: str) -> str:
    """The file id in a shard's id.

    >>> file_of("f00d-beef")
    'f00d'
    """
    return shard.partition("-")[0]


def _encode(data: Any) -> str:
    """JSON-ready data as a short ASCII string."""
    return base64.b85encode(zlib.compress(json.dumps(data, separators=(",", ":")).encode())).decode()


def _decode(text: str | None, default: Any) -> Any:
    return json.loads(zlib.decompress(base64.b85decode(text))) if text else default


def removals_of(records: Iterable[tuple[str, int]]) -> list[Removal]:
    """The fewest removals that cover rows given as (shard, position).

    >>> removals_of([("a", 1), ("a", 0), ("a", 1)])
    [Removal(shard='a', start=0, stop=2, rows=3)]
    """
    claims = claims_of((shard, position, False, False) for shard, position in records)
    return [Removal(shard=c.shard, start=c.start, stop=c.stop, rows=c.written) for c in claims]


def claims_of(records: Iterable[tuple[str, int, bool, bool]]) -> list[Claim]:
    """The fewest claims that cover rows given as (shard, position, is the shard's last record, rejected).

    >>> claims_of([("a", 0, False, False), ("a", 1, True, True), ("a", 1, True, False)])
    [Claim(shard='a', start=0, stop=2, last=True, written=2, rejected=1)]
    """
    rows = list(records)
    if not rows:
        return []
    shards, positions, last, rejected = zip(*rows, strict=True)
    return claims_of_columns(pa.array(shards, pa.string()), *map(np.array, (positions, last, rejected)))


def claims_of_columns(
    shards: pa.Array | pa.ChunkedArray,
    positions: NDArray[np.int64],
    last: NDArray[np.bool_],
    rejected: NDArray[np.bool_],
) -> list[Claim]:
    """`claims_of` for rows given as columns, so that a group's rows never become Python objects.

    Args:
        shards: (n,) strings, the shard of each row.
        positions: (n,) int64, the position of each row's record.
        last: (n,) bool, whether that record is the last one of the shard.
        rejected: (n,) bool, whether the row was rejected.
    """
    if len(positions) == 0:
        return []
    codes, names = _ordered_codes(shards)
    order = np.lexsort((positions, codes))
    codes, positions, last, rejected = codes[order], positions[order], last[order], rejected[order]
    # A record is a run of rows with the same position; a claim is a run of consecutive records.
    step, other_shard = np.diff(positions), np.diff(codes) != 0
    records = np.flatnonzero(np.r_[True, other_shard | (step != 0)])
    starts = np.flatnonzero(np.r_[True, other_shard | (step > 1)])
    ends = np.r_[starts[1:], len(positions)] - 1
    is_last = np.logical_or.reduceat(last, records)[np.searchsorted(records, ends, side="right") - 1]
    rejected_n = np.add.reduceat(rejected.astype(np.int64), starts)
    columns = (codes[starts], positions[starts], positions[ends] + 1, is_last, ends + 1 - starts, rejected_n)
    return [
        Claim(shard=names[code], start=start, stop=stop, last=flag, written=rows - refused, rejected=refused)
        for code, start, stop, flag, rows, refused in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _ordered_codes(shards: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """(n,) each row's shard as an index into the sorted distinct shards, and these shards."""
    names = sorted(pc.unique(shards).to_pylist())
    codes = pc.index_in(shards, value_set=pa.array(names, pa.string()))
    return codes.to_numpy().astype(np.int64), names


def merge_claims(claims: Iterable[Claim]) -> list[Claim]:
    """Claims of different rows, joined if they touch or overlap: `claims_of` for rows that came in pieces.

    >>> merge_claims(claims_of([("a", 1, True, False)]) + claims_of([("a", 0, False, False), ("a", 1, True, True)]))
    [Claim(shard='a', start=0, stop=2, last=True, written=2, rejected=1)]
    """
    merged: list[Claim] = []
    for claim in sorted(claims):
        previous = merged[-1] if merged else None
        if previous is None or previous.shard != claim.shard or claim.start > previous.stop:
            merged.append(claim)
            continue
        stop = max(previous.stop, claim.stop)
        merged[-1] = Claim(
            shard=claim.shard,
            start=previous.start,
            stop=stop,
            last=any(c.last and c.stop == stop for c in (previous, claim)),
            written=previous.written + claim.written,
            rejected=previous.rejected + claim.rejected,
        )
    return merged
