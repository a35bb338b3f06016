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
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_CLAIMS_PROPERTY = "isthmus.claims"
_REMOVALS_PROPERTY = "isthmus.removals"
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


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a commit did, as recorded in its transaction. Removals apply before claims.

    Attributes:
        claims: the records that it settled.
        removals: the records whose rows it removed.
        files: file id (the first half of a shard's id) → uri, for the shards named.
    """

    claims: tuple[Claim, ...] = ()
    removals: tuple[Removal, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    def to_properties(self) -> dict[str, str]:
        """The change as properties of a transaction; parts that are empty are left out."""
        parts: dict[str, Any] = {
            _CLAIMS_PROPERTY: [[c.shard, c.start, c.stop, int(c.last), c.written, c.rejected] for c in self.claims],
            _REMOVALS_PROPERTY: [[r.shard, r.start, r.stop, r.rows] for r in self.removals],
            _FILES_PROPERTY: self.files,
        }
        return {name: _encode(data) for name, data in parts.items() if data}

    @classmethod
    def from_properties(cls, properties: dict[str, str]) -> Change:
        """The inverse of `to_properties`; other properties are ignored."""
        claims = _decode(properties.get(_CLAIMS_PROPERTY), [])
        removals = _decode(properties.get(_REMOVALS_PROPERTY), [])
        return cls(
            claims=tuple(
                Claim(shard=shard, start=start, stop=stop, last=bool(last), written=written, rejected=rejected)
                for shard, start, stop, last, written, rejected in claims
            ),
            removals=tuple(Removal(shard=s, start=a, stop=b, rows=n) for s, a, b, n in removals),
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


@dataclass
class _Ranges:
    """Disjoint, sorted, merged ranges of one shard."""

    starts: list[int] = field(default_factory=list)
    stops: list[int] = field(default_factory=list)
    total: int | None = None
    rows: int = 0

    def add(self, start: int, stop: int) -> None:
        lo = bisect_right(self.stops, start - 1) if start else 0
        hi = bisect_right(self.starts, stop)
        if lo < hi:
            start, stop = min(start, self.starts[lo]), max(stop, self.stops[hi - 1])
        self.starts[lo:hi], self.stops[lo:hi] = [start], [stop]

    def remove(self, start: int, stop: int) -> None:
        pieces = []
        for a, b in zip(self.starts, self.stops, strict=True):
            pieces += [(x, y) for x, y in ((a, min(b, start)), (max(a, stop), b)) if x < y]
        self.starts, self.stops = [a for a, _ in pieces], [b for _, b in pieces]

    def count(self, start: int, stop: int) -> int:
        """How many positions of [start, stop) are covered."""
        first = bisect_right(self.stops, start)
        total = 0
        for a, b in zip(self.starts[first:], self.stops[first:], strict=True):
            if a >= stop:
                break
            total += min(b, stop) - max(a, start)
        return total


class Coverage:
    """The union of claims, less removals: what is settled.

    Attributes:
        files: file id → uri, for the files that the commits named.
    """

    def __init__(self, claims: Iterable[Claim] = ()) -> None:
        self.files: dict[str, str] = {}
        self._shards: dict[str, _Ranges] = {}
        for claim in claims:
            self.add(claim)

    def __len__(self) -> int:
        return len(self._shards)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __contains__(self, shard: str) -> bool:
        return shard in self._shards

    def add(self, claim: Claim) -> None:
        """Count a claim in."""
        ranges = self._shards.setdefault(claim.shard, _Ranges())
        # The ledger may hold a claim twice, if a store accepted a write and lost the response.
        if self.overlap(claim) < claim.stop - claim.start:
            ranges.rows += claim.written + claim.rejected
        ranges.add(claim.start, claim.stop)
        if claim.last:
            ranges.total = claim.stop

    def remove(self, removal: Removal) -> None:
        """Count a removal out. A shard with nothing left is forgotten."""
        ranges = self._shards.get(removal.shard)
        if ranges is None:
            return
        ranges.remove(removal.start, removal.stop)
        ranges.rows -= removal.rows
        if not ranges.starts:
            del self._shards[removal.shard]

    def apply(self, change: Change) -> None:
        """Count a commit's removals out and its claims in."""
        for removal in change.removals:
            self.remove(removal)
        for claim in change.claims:
            self.add(claim)
        self.files.update(change.files)

    def overlap(self, claim: Claim) -> int:
        """How many of the claim's positions are settled already: 0 for none, `stop - start` for all."""
        ranges = self._shards.get(claim.shard)
        return ranges.count(claim.start, claim.stop) if ranges else 0

    def has(self, shard: str, position: int) -> bool:
        """Whether a record is settled."""
        ranges = self._shards.get(shard)
        return ranges is not None and ranges.count(position, position + 1) == 1

    def rows(self, shard: str) -> int:
        """How many rows, written and rejected, the settled records of a shard gave."""
        ranges = self._shards.get(shard)
        return ranges.rows if ranges else 0

    def ranges(self, shard: str) -> list[tuple[int, int]]:
        """The settled ranges of a shard as (start, stop), sorted and merged."""
        ranges = self._shards.get(shard)
        return list(zip(ranges.starts, ranges.stops, strict=True)) if ranges else []

    def is_complete(self, shard: str, rows: int | None) -> bool:
        """Whether every record of a shard is settled.

        Args:
            shard: the shard's id.
            rows: the number of its records; None if the listing does not know it.
        """
        ranges = self._shards.get(shard)
        total = rows if rows is not None or ranges is None else ranges.total
        if total == 0:
            return True
        return ranges is not None and total is not None and ranges.count(0, total) == total
