"""Work that is shared out must add up to all work: no record twice, none lost."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest.engines.portions import left_of, portions
from pipelines.ingest.stages.reading import ShardWork
from pipelines.ledger.claims import Claim
from pipelines.ledger.coverage import Coverage
from pipelines.sources.base import CorpusShard

MANY_BYTES = 1 << 40


def shard(number: int, rows: int | None, done: tuple[tuple[int, int], ...] = (), size_bytes: int = 1) -> ShardWork:
    found = CorpusShard(uri=f"/c/{number}", version="1", size_bytes=size_bytes, rows=rows)
    return ShardWork(shard=found, shard_id=f"s{number}", done=done)


def records(work: list[ShardWork]) -> Counter[tuple[str, int]]:
    return Counter(
        (item.shard_id, position)
        for item in work
        for position in range(item.shard.rows or 0)
        if not item.is_done(position)
    )


@given(
    sizes=st.lists(st.integers(0, 60), max_size=30),
    settled=st.integers(0, 20),
    processes=st.integers(1, 6),
    block_rows=st.integers(1, 40),
    block_bytes=st.integers(1, 4_000),
)
def test_each_record_is_in_one_portion(
    sizes: list[int], settled: int, processes: int, block_rows: int, block_bytes: int
) -> None:
    work = [
        shard(i, rows, ((0, min(settled, rows)),) if i % 2 else (), size_bytes=100 * rows)
        for i, rows in enumerate(sizes)
    ]
    cut = list(portions(work, processes, block_rows, block_bytes))
    assert records([item for portion in cut for item in portion]) == records(work)
    assert {item.shard_id for portion in cut for item in portion} == {item.shard_id for item in work}
    assert all(cut)
    order = [item.shard_id for portion in cut for item in portion]
    assert order == sorted(order, key=lambda name: int(name[1:])), "the order of the corpus"


def test_one_large_shard_is_cut_for_all_and_many_are_not() -> None:
    assert len(list(portions([shard(0, 1_000)], 4, 100, MANY_BYTES))) == 4
    assert len(list(portions([shard(0, 40, size_bytes=1_000)], 4, 100, 250))) == 4, "few rows, of many bytes"
    assert len(list(portions([shard(0, 2, size_bytes=1_000)], 4, 100, 250))) == 2, "no more than there are rows"
    many = [shard(i, 100) for i in range(64)]
    assert [item for portion in portions(many, 4, 100, MANY_BYTES) for item in portion] == many


def test_small_shards_travel_together_less_and_less_of_them_and_unknown_ones_alone() -> None:
    together = [len(portion) for portion in portions([shard(i, 1) for i in range(200)], 2, 25, MANY_BYTES)]
    assert together[:5] == [25] * 5
    assert together == sorted(together, reverse=True)
    assert min(together[:-1]) == 4, "an eighth of a block"
    assert [len(portion) for portion in portions([shard(i, None) for i in range(20)], 2, 25, MANY_BYTES)] == [1] * 20


@given(
    rows=st.integers(64, 2_000),
    rows_of_a_shard=st.integers(1, 16),
    bytes_of_a_row=st.sampled_from([1_000, 50_000, 6_000_000]),
    processes=st.integers(1, 8),
)
def test_processes_end_together(rows: int, rows_of_a_shard: int, bytes_of_a_row: int, processes: int) -> None:
    """Equally fast processes, each of which asks when it is done, differ by at most 1/8 of a block, or some shards."""
    block_rows, block_bytes = 64, 64 << 20
    work = [
        shard(i, rows_of_a_shard, size_bytes=bytes_of_a_row * rows_of_a_shard) for i in range(rows // rows_of_a_shard)
    ]
    busy = [0] * processes
    for portion in portions(work, processes, block_rows, block_bytes):
        busy[busy.index(min(busy))] += records(portion).total()
    block = min(block_rows, block_bytes // bytes_of_a_row)
    assert max(busy) - min(busy) <= max(2 * rows_of_a_shard, block // 8 + rows_of_a_shard)


@given(
    rows=st.integers(1, 200),
    processes=st.integers(1, 5),
    settled=st.lists(st.tuples(st.integers(0, 199), st.integers(1, 50)), max_size=4),
)
def test_what_a_dead_process_leaves_is_of_its_own_pieces(
    rows: int, processes: int, settled: list[tuple[int, int]]
) -> None:
    """A piece that opened the whole shard again would do its neighbour's work."""
    coverage = Coverage(
        Claim(shard="s0", start=start, stop=min(start + n, rows), last=False, written=0, rejected=0)
        for start, n in settled
        if start < rows
    )
    for portion in portions([shard(0, rows)], processes, 10, MANY_BYTES):
        wanted = {record for record in records(portion) if not coverage.has(*record)}
        assert set(records(left_of(portion, coverage))) == wanted
