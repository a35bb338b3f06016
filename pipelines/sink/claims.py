"""Claims: which records of which shards a commit holds.

The unit of exactly-once is a range of record positions within a shard. A fragment claims the ranges whose rows
(written or rejected) it settles; a table's coverage is the union of the claims of its commits. Ranges rather
than whole shards, because blocks then stay cut where the pipeline likes and a large shard needs no commit of
its own size.
"""

from __future__ import annotations

import base64
import json
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

CLAIMS_PROPERTY = "isthmus.claims"


@dataclass(frozen=True, kw_only=True, order=True)
class Claim:
    """Records `start` to `stop` (exclusive) of a shard are settled.

    Attributes:
        shard: the shard's id.
        start: first record position.
        stop: one past the last.
        last: whether record `stop - 1` is the shard's last one.
        written: rows that went to the table (a record with several captions is several rows).
        rejected: rows that went to the rejects table.
    """

    shard: str
    start: int
    stop: int
    last: bool
    written: int
    rejected: int


def encode_claims(claims: Sequence[Claim]) -> str:
    """Claims as a short ASCII string for a transaction's properties."""
    rows = [[c.shard, c.start, c.stop, int(c.last), c.written, c.rejected] for c in claims]
    return base64.b85encode(zlib.compress(json.dumps(rows, separators=(",", ":")).encode())).decode()


def decode_claims(text: str) -> list[Claim]:
    """The inverse of `encode_claims`."""
    rows = json.loads(zlib.decompress(base64.b85decode(text)))
    return [Claim(shard=s, start=a, stop=b, last=bool(last), written=w, rejected=r) for s, a, b, last, w, r in rows]


def claims_of(records: Iterable[tuple[str, int, bool, bool]]) -> list[Claim]:
    """The fewest claims that cover rows given as (shard, position, is the shard's last record, rejected).

    >>> claims_of([("a", 0, False, False), ("a", 1, True, True), ("a", 1, True, False)])
    [Claim(shard='a', start=0, stop=2, last=True, written=2, rejected=1)]
    """
    counts: dict[tuple[str, int], list[int]] = {}
    for shard, position, last, rejected in records:
        entry = counts.setdefault((shard, position), [0, 0, 0])
        entry[0] |= int(last)
        entry[1 + int(rejected)] += 1
    claims: list[Claim] = []
    for (shard, position), (last_flag, written, rejected_n) in sorted(counts.items()):
        previous = claims[-1] if claims else None
        if previous and previous.shard == shard and previous.stop == position:
            claims[-1] = Claim(
                shard=shard,
                start=previous.start,
                stop=position + 1,
                last=bool(last_flag),
                written=previous.written + written,
                rejected=previous.rejected + rejected_n,
            )
        else:
            claims.append(
                Claim(
                    shard=shard,
                    start=position,
                    stop=position + 1,
                    last=bool(last_flag),
                    written=written,
                    rejected=rejected_n,
                )
            )
    return claims


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
    """The union of claims: what is settled already."""

    def __init__(self, claims: Iterable[Claim] = ()) -> None:
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
        # The ledger may hold a claim twice, where a store took a write and lost the answer.
        if self.overlap(claim) < claim.stop - claim.start:
            ranges.rows += claim.written + claim.rejected
        ranges.add(claim.start, claim.stop)
        if claim.last:
            ranges.total = claim.stop

    def overlap(self, claim: Claim) -> int:
        """How many of the claim's positions are settled already (0 = none, stop - start = all)."""
        ranges = self._shards.get(claim.shard)
        return ranges.count(claim.start, claim.stop) if ranges else 0

    def rows(self, shard: str) -> int:
        """How many rows, written and rejected, the settled records of a shard gave."""
        ranges = self._shards.get(shard)
        return ranges.rows if ranges else 0

    def ranges(self, shard: str) -> list[tuple[int, int]]:
        """The settled ranges of a shard, sorted, merged."""
        ranges = self._shards.get(shard)
        return list(zip(ranges.starts, ranges.stops, strict=True)) if ranges else []

    def is_complete(self, shard: str, rows: int | None) -> bool:
        """Whether every record is settled; `rows` is the number of records if the listing knows it."""
        ranges = self._shards.get(shard)
        total = rows if rows is not None or ranges is None else ranges.total
        if total == 0:
            return True
        return ranges is not None and total is not None and ranges.count(0, total) == total
