"""Which vectors are near-duplicates of an earlier one: each points to a vector that itself is kept.

A vector is kept if no kept vector before it is as near as the threshold; else it is a duplicate of the nearest of
those. Groups so made do not chain: whatever is called a duplicate is within the threshold of what stays, and no two
that stay are. (Connected components, the other usual definition, join a to z by way of b, c, … though the two are
unlike.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK = 1_024
_CELLS = 1 << 24  # similarities at a time: 64 MiB
KEPT = -1


@dataclass(frozen=True)
class Leaders:
    """What stands for each vector.

    Attributes:
        leader: int64 (n,), the kept vector that it is a duplicate of; −1 where it is kept itself.
        score: float32 (n,), their similarity; 1 where it is kept itself.
    """

    leader: NDArray[np.int64]
    score: NDArray[np.float32]


def find_leaders(vectors: Sequence[NDArray[np.float32]], threshold: float) -> Leaders:
    """Keep each vector that no kept one before it resembles.

    Args:
        vectors: of each modality, float32 (n, dim), L2-normalised. Two rows are as similar as in the modality in which
            they are least so.
        threshold: cosine from which on two count as the same.
    """
    tensors = [torch.from_numpy(np.ascontiguousarray(part)) for part in vectors]
    count = len(tensors[0])
    leader = np.full(count, KEPT, np.int64)
    score = np.ones(count, np.float32)
    kept = np.zeros(0, np.int64)
    for start in range(0, count, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, count))
        nearest, best = _nearest(tensors, block, kept)
        fresh = _settle(tensors, block, nearest, best, threshold)
        found = best >= threshold
        leader[block[found]], score[block[found]] = nearest[found], best[found]
        kept = np.concatenate([kept, fresh])
    return Leaders(leader, score)


def _nearest(
    tensors: Sequence[torch.Tensor], block: NDArray[np.int64], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The kept vector that is nearest to each of a block, and how near."""
    nearest = np.full(len(block), KEPT, np.int64)
    best = np.full(len(block), -np.inf, np.float32)
    step = max(1, _CELLS // len(block))
    for start in range(0, len(kept), step):
        part = kept[start : start + step]
        values, places = _similarities(tensors, block, part).max(dim=1)
        better = values.numpy() > best
        best[better], nearest[better] = values.numpy()[better], part[places.numpy()[better]]
    return nearest, best


def _settle(
    tensors: Sequence[torch.Tensor],
    block: NDArray[np.int64],
    nearest: NDArray[np.int64],
    best: NDArray[np.float32],
    threshold: float,
) -> NDArray[np.int64]:
    """Compare a block with itself, in order; change `nearest` and `best` in place, and return those that are kept."""
    within = _similarities(tensors, block, block).numpy()
    kept: list[int] = []
    for row in range(len(block)):
        if kept:
            own = within[row, kept]
            place = int(own.argmax())
            if own[place] > best[row]:
                best[row], nearest[row] = own[place], block[kept[place]]
        if best[row] < threshold:
            kept.append(row)
    return block[kept]


def _similarities(tensors: Sequence[torch.Tensor], rows: NDArray[np.int64], others: NDArray[np.int64]) -> torch.Tensor:
    """float32 (rows, others): the least of the modalities' cosines."""
    found: torch.Tensor | None = None
    for tensor in tensors:
        own = tensor[torch.from_numpy(rows)] @ tensor[torch.from_numpy(others)].T
        found = own if found is None else torch.minimum(found, own)
    assert found is not None
    return found
