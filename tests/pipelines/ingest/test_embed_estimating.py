"""A plan that is wrong by a factor makes people rent the wrong machine; a plan that writes is not a plan."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from corpora import pairs, write_parquet, write_webdataset

from jobs.plan import PlanConfig, run
from pipelines.cluster.resources import Resources
from pipelines.ingest.estimating import Backlog, Machine, Prices, ProbeSample, backlog, estimate, spread, stage_limits
from pipelines.ingest.forecast import Forecast
from pipelines.ingest.planning import plan_pools
from pipelines.ingest.stages.reading import ShardWork
from pipelines.sources.base import CorpusShard

SAMPLE = ProbeSample(
    records=100,
    rows=200,
    rejected=20,
    seconds={"read": 0.2, "decode": 0.8, "encode": 3.0},
    sized_records=100,
    sized_bytes=10_000,
    table_bytes=180 * 1000,
    threads=1,
    load_s=2.0,
    encoder_bytes=10**9,
    actor_bytes=2 * 10**9,
)
MACHINE = Machine(cpus=8, gpus=0, memory_bytes=64 * 10**9)
CPU_POOLS = plan_pools(Resources(cpus=8, gpus=0))


def work(rows: int | None, size: int = 0, done: tuple[tuple[int, int], ...] = ()) -> ShardWork:
    return ShardWork(shard=CorpusShard(uri="/c", version="1", rows=rows, size_bytes=size), shard_id="s", done=done)


def test_rows_are_counted_where_the_listing_knows_them_and_estimated_elsewhere() -> None:
    one_each = replace(SAMPLE, rows=100)
    assert backlog([work(70), work(30, done=((0, 10),))], one_each) == Backlog(rows=90, about=False)
    assert backlog([work(70)], SAMPLE) == Backlog(rows=140, about=True), "two captions a record"
    assert backlog([work(70), work(None, 5_000, ((0, 20),))], one_each) == Backlog(rows=100, about=True)
    assert backlog([], None) == Backlog(rows=0, about=False)


def test_stages_share_the_cores_without_gpus() -> None:
    # 1 + 4 + 15 ms per row on each of 8 cores.
    assert stage_limits(SAMPLE, MACHINE, CPU_POOLS) == {"encode": pytest.approx(8 / 0.020)}
    few = plan_pools(Resources(cpus=8, gpus=0), actors=2)
    # Two actors with four threads each: work encoded with four threads takes four cores' time.
    assert stage_limits(replace(SAMPLE, threads=4), MACHINE, few) == {"encode": pytest.approx(2 / 0.019)}


def test_a_gpu_waits_for_cores_that_decode() -> None:
    machine = replace(MACHINE, gpus=4)
    pools = plan_pools(Resources(cpus=8, gpus=4))
    fast = replace(SAMPLE, seconds={"read": 0.2, "decode": 2.0, "encode": 0.1})
    limits = stage_limits(fast, machine, pools)
    assert limits == {"decode": pytest.approx(4 / 0.011), "encode": pytest.approx(4 / 0.0005)}
    took = estimate(10_000, fast, machine, pools, Prices())
    assert (took.bottleneck, took.actors_fed) == ("decode", 0.35)
    assert took.cores_per_actor == pytest.approx(22)
    assert "GPUs will wait" in " ".join(took.notes)


def test_time_cost_and_size_follow_from_the_rate() -> None:
    prices = Prices(cpu_hour=0.05, gpu_hour=9.0)
    took = estimate(1_000_000, SAMPLE, MACHINE, CPU_POOLS, prices)
    assert took.rows_per_s == pytest.approx(0.85 * 400)
    assert took.seconds == pytest.approx(1_000_000 / took.rows_per_s + 10.0, abs=0.1)
    assert took.cost == pytest.approx(0.4 * took.seconds / 3600, rel=1e-3)
    assert took.cost_per_million_rows == pytest.approx(0.4 / 3600 / took.rows_per_s * 1e6, rel=1e-3)
    assert took.table_bytes == 900_000 * 1000, "a tenth of the rows is rejected"
    assert estimate(10, SAMPLE, MACHINE, CPU_POOLS, Prices(machine_hour=3.6)).cost == pytest.approx(0.01, rel=0.01)
    assert estimate(10, SAMPLE, MACHINE, CPU_POOLS, Prices()).cost is None


def test_actors_that_do_not_fit_in_memory_are_said() -> None:
    took = estimate(10, SAMPLE, replace(MACHINE, memory_bytes=7 * 10**9), CPU_POOLS, Prices())
    assert any("use --actors 3" in note for note in took.notes)


def test_the_sample_is_spread_over_the_corpus() -> None:
    items = [work(n) for n in range(100)]
    assert [item.shard.rows for item in spread(items, 4)] == [12, 37, 62, 87]
    assert spread(items[:2], 8) == items[:2]


def plan(corpus: Path, table: Path, **options: object) -> Forecast:
    config = PlanConfig(corpus=str(corpus), table=str(table), encoder="fake", **options)  # type: ignore[arg-type]
    return run(config).forecast


def test_a_plan_of_a_real_corpus_adds_up_and_writes_nothing(tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "c" / "a.parquet", pairs(150), row_group_rows=25)
    report = plan(tmp_path / "c", tmp_path / "db" / "t", columns={"key": "id"}, price_per_hour=1.0, probe_rows=60)

    assert corpus.exists()
    assert not (tmp_path / "db").exists()
    assert (report.rows_to_embed, report.about, report.rows_skipped) == (150, False, 0)
    assert report.shards == report.shards_to_read == 6
    sample, took = report.sample, report.estimate
    assert sample is not None
    assert took is not None
    assert 60 <= sample.rows <= 150
    assert set(sample.seconds) == {"read", "decode", "encode"}
    assert sample.actor_bytes > sample.encoder_bytes >= 0
    assert 0 < took.rows_per_s < math.inf
    assert took.cost is not None
    # Two float32 vectors of 64 numbers, and some text.
    assert 150 * 2 * 64 * 4 < took.table_bytes < 2 * 150 * 2 * 64 * 4


def test_rows_of_tars_are_estimated_by_their_bytes(tmp_path: Path) -> None:
    tars = write_webdataset(tmp_path / "tars", pairs(300), per_tar=100)
    report = plan(tars, tmp_path / "t", probe_rows=120)
    assert report.about
    assert 240 < report.rows_to_embed < 360


def test_a_price_is_of_the_whole_or_of_its_parts() -> None:
    with pytest.raises(ValueError, match="price_per_hour 1: is the price of the whole cluster"):
        PlanConfig(corpus="c", table="t", encoder="e", price_per_hour=1, price_per_gpu_hour=2)
