"""Plan of a run: read tasks, actors, block sizes and modalities. Pure functions of plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from encoders.protocol import Modality
from pipelines.cluster.resources import Resources
from pipelines.ingest.stages.pools import PoolPlan
from pipelines.ingest.stages.reading import ShardWork

_MIN_TASKS = 16
_MAX_SMALL_TASKS = 64
_MAX_TASKS = 20_000
_TASK_BYTES = 128 << 20
# Opening a file costs about as much as reading this many bytes. Counting it keeps tasks of many tiny files even.
_SHARD_OVERHEAD_BYTES = 64 << 10
# For each block the driver does some work and Ray Data keeps some kilobytes of statistics. With many GPUs blocks are
# larger, so that the driver keeps up.
_BLOCK_BYTES, _BLOCK_BYTES_A_GPU, _MAX_BLOCK_BYTES = 32 << 20, 2 << 20, 128 << 20
_MIN_BLOCK_ROWS = 16
_MAX_BLOCK_ROWS = 1024


def plan_pools(resources: Resources, *, actors: int | None = None, gpus_per_actor: float | None = None) -> PoolPlan:
    """Plan the actors and the resources of tasks.

    With GPUs, each GPU gets one actor, and each decode task gets a whole CPU. Without GPUs, each core gets one
    single-threaded actor that decodes and encodes (equal resources let Ray Data fuse the two stages), and about one
    read task beside it. Reading mostly waits for stores, so the actors keep every core busy.

    Args:
        resources: CPUs and GPUs of the cluster.
        actors: number of encode actors; None: one for each GPU, or one for each core without GPUs.
        gpus_per_actor: GPUs of each actor; None: 1 if the cluster has any, else 0.

    Raises:
        ValueError: actors with GPUs were requested, and the cluster has too few GPUs for them.
    """
    gpus = gpus_per_actor if gpus_per_actor is not None else (1.0 if resources.gpus >= 1 else 0.0)
    if gpus > 0:
        room = math.floor(resources.gpus / gpus)
        if room < 1 or (actors or 0) > room:
            raise ValueError(
                f"num_gpus {gpus}: the cluster has {resources.gpus:g} GPUs, enough for {room} actors, "
                f"not {actors or 1}; lower --num-gpus or --actors"
            )
        return PoolPlan(
            actors=actors or room,
            gpus_per_actor=gpus,
            cpus_per_actor=1.0,
            cpus_per_read=0.25,
            cpus_per_decode=1.0,
            threads_per_actor=None,
        )
    cores = max(1, int(resources.cpus))
    count = actors or cores
    return PoolPlan(
        actors=count,
        gpus_per_actor=0.0,
        cpus_per_actor=min(0.4, 0.4 * cores / count),
        cpus_per_read=0.5,
        cpus_per_decode=0.4,
        threads_per_actor=max(1, cores // count),
    )


def plan_work(
    work: Sequence[ShardWork],
    resources: Resources,
    rows_of_a_block: int,
    *,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
) -> tuple[list[list[ShardWork]], PoolPlan]:
    """Plan the read tasks and the actors. By default there are no more actors than blocks to encode.

    Each actor loads the encoder. A nightly run with a hundred new rows should not load it on every GPU.

    Args:
        work: the shards to read, in corpus order.
        resources: CPUs and GPUs of the cluster.
        rows_of_a_block: the most rows in a block.
        actors: the configured number of encode actors; None chooses.
        gpus_per_actor: the configured GPUs of each actor; None chooses.

    Returns:
        The shards of each read task, and the plan of the actors.

    Raises:
        ValueError: actors with GPUs were requested, and the cluster has too few GPUs for them.
    """
    pools = plan_pools(resources, actors=actors, gpus_per_actor=gpus_per_actor)
    groups = group_work(work, pools.actors)
    if actors is None and groups:
        blocks = sum(_blocks(group, rows_of_a_block) for group in groups)
        if blocks < pools.actors:
            pools = plan_pools(resources, actors=int(blocks), gpus_per_actor=gpus_per_actor)
    return groups, pools


def _blocks(group: Sequence[ShardWork], rows_of_a_block: int) -> float:
    """Number of blocks that a read task gives, at least 1; infinite if the listing does not know its rows."""
    rows = 0
    for item in group:
        if item.shard.rows is None:
            return math.inf
        rows += item.shard.rows - sum(stop - start for start, stop in item.done)
    return max(1, math.ceil(rows / rows_of_a_block))


def block_rows(pixel_bytes: int, gpus: float = 0.0) -> int:
    """The number of rows in a block, such that its pixels fit a budget.

    The budget is 32 MiB. With more than 16 GPUs it is 2 MiB for each GPU, up to 128 MiB.

    Args:
        pixel_bytes: bytes of one picture at the encoder's input size; 0 if no pictures are embedded.
        gpus: number of GPUs of the cluster.

    Returns:
        A number from 16 to 1024.
    """
    room = min(max(_BLOCK_BYTES, int(gpus * _BLOCK_BYTES_A_GPU)), _MAX_BLOCK_BYTES)
    fitting = room // pixel_bytes if pixel_bytes else _MAX_BLOCK_ROWS
    return max(_MIN_BLOCK_ROWS, min(_MAX_BLOCK_ROWS, fitting))


def group_work(work: Sequence[ShardWork], actors: int) -> list[list[ShardWork]]:
    """Divide the shards, in order, into read tasks of about equal bytes.

    One large file becomes many tasks (up to one for each shard). Thousands of tiny files become a few tasks.

    Args:
        work: the shards to read, in corpus order.
        actors: number of encode actors. There are at least twice as many tasks if there are that many shards.
    """
    if not work:
        return []
    sizes = [item.shard.size_bytes + _SHARD_OVERHEAD_BYTES for item in work]
    by_bytes = math.ceil(sum(item.shard.size_bytes for item in work) / _TASK_BYTES)
    floor = min(max(_MIN_TASKS, 2 * actors), max(_MAX_SMALL_TASKS, 2 * actors))
    return _cut_evenly(work, sizes, min(len(work), _MAX_TASKS, max(floor, by_bytes)))


def _cut_evenly(work: Sequence[ShardWork], sizes: Sequence[int], parts: int) -> list[list[ShardWork]]:
    """`parts` consecutive non-empty groups. Each one ends when it has its share of the remaining bytes."""
    groups: list[list[ShardWork]] = []
    left = sum(sizes)
    group: list[ShardWork] = []
    held = 0
    for i, (item, size) in enumerate(zip(work, sizes, strict=True)):
        group.append(item)
        held += size
        open_parts = parts - len(groups)
        must_close = len(work) - i - 1 <= open_parts - 1
        if open_parts > 1 and (held >= left / open_parts or must_close):
            groups.append(group)
            left -= held
            group, held = [], 0
    if group:
        groups.append(group)
    return groups


def choose_modalities(embed: str, encoder: Sequence[Modality], corpus: frozenset[str]) -> tuple[Modality, ...]:
    """The modalities to embed, in the encoder's order.

    Args:
        embed: `auto`, `image`, `text`, `both` or `any`.
        encoder: the modalities that the encoder reads.
        corpus: the modalities that the corpus contains, judged by its layout.

    Raises:
        ValueError: the encoder and the corpus have no modality in common, or lack one that `embed` requires.

    >>> choose_modalities("auto", ("image",), frozenset({"image", "text"}))
    ('image',)
    """
    wanted = {"image": {"image"}, "text": {"text"}}.get(embed, {"image", "text"})
    chosen = tuple(m for m in encoder if m in wanted and m in corpus)
    required = {"both": {"image", "text"}, "image": {"image"}, "text": {"text"}}.get(embed, set())
    if not chosen or not required <= set(chosen):
        raise ValueError(
            f"embed {embed!r}: the encoder reads {', '.join(encoder)}, the corpus holds "
            f"{', '.join(sorted(corpus)) or 'neither pictures nor captions'}; name another encoder, "
            "or the columns by --columns.image, --columns.uri or --columns.caption"
        )
    return chosen
