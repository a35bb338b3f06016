"""Too few read tasks leave cores idle; too many small ones cost more than they read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cluster.resources import Resources
from pipelines.ingest.planning import block_rows, choose_modalities, group_work, plan_pools, plan_work
from pipelines.ingest.stages.reading import ShardWork
from pipelines.sources.base import CorpusShard


def work(sizes: list[int]) -> list[ShardWork]:
    shards = [CorpusShard(uri=f"f{i}", version="v", size_bytes=size) for i, size in enumerate(sizes)]
    return [ShardWork(shard=shard, shard_id=shard.uri) for shard in shards]


@given(st.lists(st.integers(0, 1 << 28), max_size=300), st.integers(1, 40))
def test_groups_hold_every_shard_once_in_order(sizes: list[int], actors: int) -> None:
    shards = work(sizes)
    groups = group_work(shards, actors)

    assert [item for group in groups for item in group] == shards
    assert all(groups), "an empty read task is a wasted start"
    assert len(groups) >= min(len(shards), 2 * actors)


def test_one_file_of_many_row_groups_is_read_by_many_tasks() -> None:
    assert len(group_work(work([1 << 20] * 16), actors=2)) >= 8


def test_ten_thousand_tiny_files_are_read_by_few_tasks() -> None:
    groups = group_work(work([3_000] * 10_000), actors=2)
    assert len(groups) <= 64
    assert max(map(len, groups)) <= 2 * min(map(len, groups)), "and evenly"


def test_large_corpora_get_tasks_by_bytes() -> None:
    assert len(group_work(work([64 << 20] * 400), actors=2)) >= 200


def test_a_machine_without_gpus_gives_every_core_an_actor_and_a_reader() -> None:
    plan = plan_pools(Resources(cpus=2, gpus=0))
    assert plan.actors == 2
    assert plan.gpus_per_actor == 0
    assert plan.cpus_per_decode == plan.cpus_per_actor, "equal resources let Ray fuse decoding into the actors"
    busy = plan.actors * plan.cpus_per_actor + 2 * plan.cpus_per_read
    assert busy <= 2, "actors and readers of all cores fit side by side"


def test_a_cluster_with_gpus_gets_an_actor_a_gpu() -> None:
    plan = plan_pools(Resources(cpus=64, gpus=4))
    assert (plan.actors, plan.gpus_per_actor) == (4, 1.0)
    assert plan_pools(Resources(cpus=64, gpus=4), gpus_per_actor=0.5).actors == 8


def test_gpus_that_are_not_there_are_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match=r"num_gpus 1.0: the cluster has 0 GPUs"):
        plan_pools(Resources(cpus=8, gpus=0), gpus_per_actor=1.0)


def test_a_few_new_rows_do_not_load_the_encoder_everywhere() -> None:
    def shards(*rows: int | None, done: tuple[tuple[int, int], ...] = ()) -> list[ShardWork]:
        return [
            ShardWork(shard=CorpusShard(uri=f"/c/{i}", version="1", rows=n, size_bytes=1), shard_id=str(i), done=done)
            for i, n in enumerate(rows)
        ]

    cluster = Resources(cpus=64, gpus=16)
    assert plan_work(shards(100), cluster, 256)[1].actors == 1
    assert plan_work(shards(700, 100), cluster, 256)[1].actors == 4, "blocks do not span read tasks"
    assert plan_work(shards(700, done=((0, 690),)), cluster, 256)[1].actors == 1
    assert plan_work(shards(100, None), cluster, 256)[1].actors == 16, "a tar may hold any number"
    assert plan_work(shards(100_000), cluster, 256)[1].actors == 16
    assert plan_work(shards(100), cluster, 256, actors=3)[1].actors == 3, "who asks for them gets them"
    few = plan_work(shards(100), Resources(cpus=8, gpus=0), 256)[1]
    assert (few.actors, few.threads_per_actor) == (1, 8)
    assert plan_work([], cluster, 256) == ([], plan_pools(cluster))


def test_blocks_shrink_as_pictures_grow() -> None:
    assert block_rows(0) == 1024
    assert block_rows(224 * 224 * 3) == 222
    assert block_rows(4096 * 4096 * 3) == 16


def test_blocks_grow_with_the_gpus_that_one_driver_feeds() -> None:
    pixels = 224 * 224 * 3
    assert [block_rows(pixels, gpus) for gpus in (0, 1, 16, 32, 64, 1_000)] == [222, 222, 222, 445, 891, 891]
    assert block_rows(0, 64) == 1024


def test_what_to_embed_is_what_corpus_and_encoder_share() -> None:
    both = frozenset({"image", "text"})
    assert choose_modalities("auto", ("image", "text"), both) == ("image", "text")
    assert choose_modalities("auto", ("image",), both) == ("image",)
    assert choose_modalities("text", ("image", "text"), both) == ("text",)
    with pytest.raises(ValueError, match="encoder reads image"):
        choose_modalities("both", ("image",), both)
    with pytest.raises(ValueError, match="corpus holds text"):
        choose_modalities("auto", ("image",), frozenset({"text"}))
