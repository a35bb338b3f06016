"""What to read, in how many tasks, with how many actors: pure functions of plain data."""

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
# Opening a file costs about as much as reading this many bytes; it keeps tasks of many tiny files even.
_SHARD_OVERHEAD_BYTES = 64 << 10
# The driver does some work for each block, and Ray Data keeps some kilobytes of statistics: with many GPUs blocks are
# larger, so that it keeps up.
_BLOCK_BYTES, _BLOCK_BYTES_A_GPU, _MAX_BLOCK_BYTES = 32 << 20, 2 << 20, 128 << 20
_MIN_BLOCK_ROWS = 16
_MAX_BLOCK_ROWS = 1024


def plan_pools(resources: Resources, *, actors: int | None = None, gpus_per_actor: float | None = None) -> PoolPlan:
    """Actors and task sizes.

    With GPUs, an actor a GPU, and a whole CPU for each decode task. Without, one single-threaded actor a core that
    decodes and encodes (equal resources let Ray Data fuse the two stages), and about one read task a core beside
    it: reading waits for stores, the actors keep every core busy while there are rows.

    Raises:
        ValueError: a GPU was asked for and the cluster has none, or more actors than fit.
    """
    gpus = gpus_per_actor if gpus_per_actor is not None else (1.0 if resources.gpus >= 1 else 0.0)
    if gpus > 0:
        room = math.floor(resources.gpus / gpus)
        if room < 1 or (actors or 0) > room:
            raise ValueError(
                f"num_gpus {gpus}: the cluster has {resources.gpus:g} GPUs, room for {room} actors, "
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
    """Read tasks, and actors for them: by default no more actors than there are blocks to encode.

    Each actor loads the encoder; a nightly run that found a hundred new rows should not pay for that on every GPU.

    Args:
        work: the shards to read, in corpus order.
        resources: of the cluster.
        rows_of_a_block: the most rows of a block.
        actors: as configured.
        gpus_per_actor: as configured.

    Raises:
        ValueError: see `plan_pools`.
    """
    pools = plan_pools(resources, actors=actors, gpus_per_actor=gpus_per_actor)
    groups = group_work(work, pools.actors)
    if actors is None and groups:
        blocks = sum(_blocks(group, rows_of_a_block) for group in groups)
        if blocks < pools.actors:
            pools = plan_pools(resources, actors=int(blocks), gpus_per_actor=gpus_per_actor)
    return groups, pools


def _blocks(group: Sequence[ShardWork], rows_of_a_block: int) -> float:
    """Blocks that a read task gives, at least one; infinite where the listing does not know its rows."""
    rows = 0
    for item in group:
        if item.shard.rows is None:
            return math.inf
        rows += item.shard.rows - sum(stop - start for start, stop in item.done)
    return max(1, math.ceil(rows / rows_of_a_block))


def block_rows(pixel_bytes: int, gpus: float = 0.0) -> int:
    """Rows of a block, such that its pixels stay within 32 MiB; with more than 16 GPUs within 2 MiB for each, and
    128 MiB.

    Args:
        pixel_bytes: bytes of one picture at the encoder's input size, 0 where no pictures are embedded.
        gpus: of the cluster.
    """
    room = min(max(_BLOCK_BYTES, int(gpus * _BLOCK_BYTES_A_GPU)), _MAX_BLOCK_BYTES)
    fitting = room // pixel_bytes if pixel_bytes else _MAX_BLOCK_ROWS
    return max(_MIN_BLOCK_ROWS, min(_MAX_BLOCK_ROWS, fitting))


def group_work(work: Sequence[ShardWork], actors: int) -> list[list[ShardWork]]:
    """Cut the shards, in order, into read tasks of about equal bytes.

    One large file becomes many tasks (a task a shard, if need be); thousands of tiny files become few.

    Args:
        work: the shards to read, in corpus order.
        actors: encode actors; there are at least twice as many tasks where there are that many shards.
    """
    if not work:
        return []
    sizes = [item.shard.size_bytes + _SHARD_OVERHEAD_BYTES for item in work]
    by_bytes = math.ceil(sum(item.shard.size_bytes for item in work) / _TASK_BYTES)
    floor = min(max(_MIN_TASKS, 2 * actors), max(_MAX_SMALL_TASKS, 2 * actors))
    return _cut_evenly(work, sizes, min(len(work), _MAX_TASKS, max(floor, by_bytes)))


def _cut_evenly(work: Sequence[ShardWork], sizes: Sequence[int], parts: int) -> list[list[ShardWork]]:
    """`parts` consecutive non-empty groups; each closes when it has its share of what is left."""
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
    """What to embed.

    Args:
        embed: `auto`, `image`, `text`, `both` or `any`.
        encoder: what the encoder reads.
        corpus: what the corpus holds, by its layout.

    Raises:
        ValueError: the encoder and the corpus do not meet, or not where asked for.

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
