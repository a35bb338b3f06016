"""Coverage: which records of which shards are settled, and which rejects count."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipelines.ledger.claims import Change, Claim, Rejecting, Removal


@dataclass
class _Ranges:
    """Disjoint, sorted, merged ranges of one shard.

    Attributes:
        starts: first position of each range.
        stops: one past the last position of each range.
        rows: rows, written and rejected, of the settled records.
        rejecting: which rejects count, as disjoint (start, stop, token).
    """

    starts: list[int] = field(default_factory=list)
    stops: list[int] = field(default_factory=list)
    rows: int = 0
    rejecting: list[tuple[int, int, str]] = field(default_factory=list)

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
        self.forget_rejects(start, stop)

    def forget_rejects(self, start: int, stop: int) -> None:
        """No rejects of these positions count any more."""
        self.rejecting = [
            (x, y, token) for a, b, token in self.rejecting for x, y in ((a, min(b, start)), (max(a, stop), b)) if x < y
        ]

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
        # Shard → number of its records, where a claim said so. A shard's id names a version of a file, so this holds
        # whatever happens to the table.
        self._ends: dict[str, int] = {}
        for claim in claims:
            self.add(claim)

    def __len__(self) -> int:
        return len(self._shards)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __contains__(self, shard: str) -> bool:
        return shard in self._shards

    def add(self, claim: Claim) -> None:
        """Count a claim in. A claim of no records only says where the shard ends."""
        if claim.last:
            self._ends[claim.shard] = claim.stop
        if claim.start == claim.stop:
            return
        ranges = self._shards.setdefault(claim.shard, _Ranges())
        # The ledger may hold a claim twice, if a store accepted a write and lost the response.
        if self.overlap(claim) < claim.stop - claim.start:
            ranges.forget_rejects(claim.start, claim.stop)
            ranges.rows += claim.written + claim.rejected
        ranges.add(claim.start, claim.stop)

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
        for part in change.rejecting:
            if ranges := self._shards.get(part.shard):
                ranges.forget_rejects(part.start, part.stop)
                ranges.rejecting.append((part.start, part.stop, part.token))
        self.files.update(change.files)

    def counts(self, shard: str, position: int, token: str) -> bool:
        """Whether a reject of this record, written under this token, counts: whether its claim landed and still holds.

        Args:
            shard: the shard's id.
            position: the record's position.
            token: the token of the group that the reject was staged with.
        """
        ranges = self._shards.get(shard)
        return ranges is not None and any(a <= position < b and token == t for a, b, t in ranges.rejecting)

    def remember(self, other: Coverage) -> None:
        """Take over what does not depend on the table: where shards end, and which files they are of."""
        self._ends |= other._ends
        self.files |= other.files

    @property
    def ends(self) -> dict[str, int]:
        """Shard → number of its records, where it is known."""
        return self._ends

    @property
    def rejecting(self) -> tuple[Rejecting, ...]:
        """Which rejects count."""
        return tuple(
            Rejecting(shard=shard, start=start, stop=stop, token=token)
            for shard, ranges in self._shards.items()
            for start, stop, token in ranges.rejecting
        )

    def count_all_rejects(self) -> None:
        """Rejects without a token count for all settled records, as before there were tokens."""
        for ranges in self._shards.values():
            ranges.rejecting = [(start, stop, "") for start, stop in zip(ranges.starts, ranges.stops, strict=True)]

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
        total = self._ends.get(shard) if rows is None else rows
        if total == 0:
            return True
        return ranges is not None and total is not None and ranges.count(0, total) == total
