"""Gathers the pairs of all processes, with gradients, so that a sharded contrastive loss equals that of one process.

Each process compares its own rows with the rows of all processes. The gradient of a vector is the sum over all
processes whose rows were compared with it. Without that sum the towers' gradients are wrong, not merely scaled (cosine
0.95 to the right one).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from encoders.losses.pairs import Pairs, Shard


def gather_pairs(pairs: Pairs) -> Shard:
    """This process's rows within the pairs of all processes, in the order of ranks.

    Without a process group this is the batch itself. Processes may hold unequal numbers of rows, including none. Every
    process must call this.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Shard.whole(pairs)
    counts = row_counts(len(pairs), pairs.image.device)
    everything = replace(pairs, **{name: gather_rows(value, counts) for name, value in pairs.rows().items()})
    rank = dist.get_rank()
    return Shard(pairs=everything, first=sum(counts[:rank]), rows=counts[rank], world=len(counts))


def row_counts(rows: int, device: torch.device) -> list[int]:
    """The number of rows of each process, by rank."""
    counts = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(rows, dtype=torch.int64, device=device))
    return [int(count) for count in counts]


def gather_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Rows (counts[rank], …) of each process → the rows of all processes (sum of counts, …); differentiable."""
    return _GatherRows.apply(rows, counts)


class _GatherRows(torch.autograd.Function):
    """Forward gathers the rows; backward sums the gradients of this process's rows over the processes."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        ctx.counts = counts
        # Collectives need equal shapes.
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        pieces = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(pieces, padded)
        return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        rank, counts = dist.get_rank(), ctx.counts
        first = sum(counts[:rank])
        return total[first : first + counts[rank]], None
