"""A miscounted claim is a lost or duplicated row."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipelines.ledger.claims import Change, Claim, Rejecting, Removal, claims_of, merge_claims, removals_of
from pipelines.ledger.coverage import Coverage

_SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 15)).map(lambda t: (t[0], t[0] + t[1])), max_size=25)


def claim(start: int, stop: int, shard: str = "s", *, last: bool = False) -> Claim:
    return Claim(shard=shard, start=start, stop=stop, last=last, written=stop - start, rejected=0)


@given(_SPANS, st.integers(0, 70), st.integers(1, 20))
def test_coverage_equals_a_set_of_positions(spans: list[tuple[int, int]], start: int, length: int) -> None:
    coverage = Coverage(claim(a, b) for a, b in spans)
    covered = {i for a, b in spans for i in range(a, b)}

    assert {i for a, b in coverage.ranges("s") for i in range(a, b)} == covered
    assert coverage.overlap(claim(start, start + length)) == len(covered & set(range(start, start + length)))
    merged = coverage.ranges("s")
    assert all(b < c for (_, b), (c, _) in pairwise(merged)), "ranges stay merged and apart"


@given(_SPANS, st.integers(1, 80))
def test_a_shard_is_complete_only_when_every_record_is_settled(spans: list[tuple[int, int]], rows: int) -> None:
    coverage = Coverage(claim(a, b) for a, b in spans)
    covered = {i for a, b in spans for i in range(a, b)}

    assert coverage.is_complete("s", rows) == (set(range(rows)) <= covered)
    assert not coverage.is_complete("s", None), "without the last record's mark nobody knows where the shard ends"


def test_the_mark_of_the_last_record_completes_a_shard_of_unknown_length() -> None:
    coverage = Coverage([claim(3, 7, last=True)])
    assert not coverage.is_complete("s", None)
    coverage.add(claim(0, 3))
    assert coverage.is_complete("s", None)


def claims_by_hand(rows: list[tuple[str, int, bool, bool]]) -> list[Claim]:
    """The naive way: record by record, in order."""
    records: dict[tuple[str, int], list[tuple[bool, bool]]] = {}
    for shard, position, last, rejected in rows:
        records.setdefault((shard, position), []).append((last, rejected))
    claims: list[Claim] = []
    for (shard, position), found in sorted(records.items()):
        refused = sum(rejected for _, rejected in found)
        new = Claim(
            shard=shard, start=position, stop=position + 1, last=any(last for last, _ in found),
            written=len(found) - refused, rejected=refused,
        )  # fmt: skip
        before = claims[-1] if claims else None
        if before and (before.shard, before.stop) == (shard, position):
            new = replace(
                new, start=before.start, written=before.written + new.written, rejected=before.rejected + refused
            )
            claims.pop()
        claims.append(new)
    return claims


_ROWS = st.lists(st.tuples(st.sampled_from(["a", "b", "ä-1"]), st.integers(0, 12), st.booleans(), st.booleans()))


@given(_ROWS)
def test_claims_computed_by_columns_are_those_counted_record_by_record(
    rows: list[tuple[str, int, bool, bool]],
) -> None:
    assert claims_of(rows) == claims_by_hand(rows)


@given(_ROWS, st.lists(st.integers(0, 40), max_size=4))
def test_a_table_read_in_batches_claims_what_it_claims_in_one_piece(
    rows: list[tuple[str, int, bool, bool]], cuts: list[int]
) -> None:
    """The ledger is rebuilt batch by batch; a record's captions may be in two of them."""
    rows = [(shard, position, False, rejected) for shard, position, _, rejected in rows]
    parts = [rows[a:b] for a, b in pairwise([0, *sorted(cuts), len(rows)])]
    assert merge_claims(claim for part in parts for claim in claims_of(part)) == claims_of(rows)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), unique=True),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_claims_of_rows_cover_each_record_once_and_count_each_row(records, captions, random) -> None:  # type: ignore[no-untyped-def]
    rows = [(shard, position, False, random.random() < 0.3) for shard, position in records for _ in range(captions)]
    random.shuffle(rows)
    claims = claims_of(rows)

    settled = [(c.shard, i) for c in claims for i in range(c.start, c.stop)]
    assert sorted(settled) == sorted(set(records))
    assert sum(c.written + c.rejected for c in claims) == len(rows)
    assert sum(c.rejected for c in claims) == sum(rejected for *_, rejected in rows)
    tokens = tuple(Rejecting(shard=c.shard, start=c.start, stop=c.stop, token="t") for c in claims if c.rejected)
    change = Change(
        claims=tuple(claims),
        removals=tuple(removals_of(records)),
        rejecting=tokens,
        files={"a": "/corpus/ä b.parquet"},
    )
    properties = change.to_properties()
    assert all(value.isascii() for value in properties.values())
    assert Change.from_properties({"lance": "other", **properties}) == change


def test_claims_do_not_join_over_a_gap_or_from_shard_to_shard() -> None:
    rows = [("a", 0, False, False), ("a", 2, True, False), ("b", 3, False, False)]
    assert [(c.shard, c.start, c.stop, c.last) for c in claims_of(rows)] == [
        ("a", 0, 1, False),
        ("a", 2, 3, True),
        ("b", 3, 4, False),
    ]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(1, 12)), max_size=30),
)
def test_claims_and_removals_in_any_order_equal_a_set_of_positions(steps: list[tuple[bool, int, int]]) -> None:
    coverage, positions = Coverage(), set()
    for adds, start, length in steps:
        span = range(start, start + length)
        if adds:
            coverage.apply(Change(claims=(claim(span.start, span.stop),)))
            positions |= set(span)
        else:
            coverage.apply(Change(removals=(Removal(shard="s", start=span.start, stop=span.stop, rows=0),)))
            positions -= set(span)
    assert {i for a, b in coverage.ranges("s") for i in range(a, b)} == positions
    assert ("s" in coverage) == bool(positions), "a shard of which nothing is left is forgotten"


def test_a_commit_removes_before_it_claims() -> None:
    """A record that is replaced within its shard leaves and comes in one commit."""
    coverage = Coverage([claim(0, 5)])
    coverage.apply(Change(claims=(claim(2, 3),), removals=(Removal(shard="s", start=2, stop=3, rows=1),)))
    assert coverage.ranges("s") == [(0, 5)]
    assert coverage.rows("s") == 5
