"""The share of the ceiling must not depend on the order in which groups come, nor count a start."""

from __future__ import annotations

import random

import pytest

from pipelines.ingest.embed_report import hint_for, shares
from pipelines.rows.pace import BlockTime, Pace, StageWorkers


def blocks(n: int, rows: int = 100, every_s: float = 1.0, start: float = 50.0) -> list[BlockTime]:
    return [BlockTime(ready=start + i * every_s, rows=rows, decode_s=0.4, encode_s=0.6) for i in range(n)]


def test_the_pace_is_that_of_the_rows_after_the_first_blocks() -> None:
    found = blocks(100)
    random.Random(0).shuffle(found)
    pace = Pace()
    for block in found:
        pace.add([block])
    assert pace.costs() == pytest.approx((0.004, 0.006))
    assert pace.steady_rows_per_s(workers=2) == pytest.approx(100.0)
    report = shares(pace, StageWorkers(encoders=2))
    assert report == {"steady_rows_per_s": 100.0, "ceiling_rows_per_s": 200.0, "share_of_ceiling": 0.5}


def test_a_slow_first_block_moves_neither() -> None:
    """An encoder's first batch compiles its kernels."""
    pace = Pace()
    pace.add([BlockTime(ready=0.0, rows=100, decode_s=30.0, encode_s=60.0), *blocks(60)])
    assert pace.costs() == pytest.approx((0.004, 0.006))
    assert pace.steady_rows_per_s(workers=1) == pytest.approx(6_000 / 109.0)


def test_an_encoder_that_finds_a_faster_way_raises_the_ceiling() -> None:
    """Otherwise the pace would be above the ceiling."""
    slow = [BlockTime(ready=float(i), rows=100, decode_s=0.4, encode_s=6.0) for i in range(16)]
    pace = Pace()
    pace.add([*slow, *blocks(40)])
    assert pace.costs() == pytest.approx((0.004, 0.006))


def test_too_few_blocks_tell_nothing() -> None:
    pace = Pace()
    pace.add(blocks(3))
    assert shares(pace, StageWorkers(encoders=2)) == dict.fromkeys(
        ("steady_rows_per_s", "ceiling_rows_per_s", "share_of_ceiling")
    )
    assert hint_for("encode", pace, StageWorkers(encoders=2)) == (
        "encoding is the bottleneck: more or faster GPUs (or cores), or a smaller model"
    )
    assert hint_for(None, Pace(), None) is None


def test_the_hint_counts_what_is_wanting() -> None:
    pace = Pace()
    pace.add([BlockTime(ready=float(i), rows=100, decode_s=1.0, encode_s=0.1) for i in range(20)])
    assert hint_for("decode", pace, StageWorkers(encoders=1, decoders=4, gpus=1)) == "decode-bound: +6 CPU per GPU"
    assert (
        hint_for("stage", pace, StageWorkers(encoders=1))
        == "writing is the bottleneck: a faster store, or --vector-dtype float16"
    )
