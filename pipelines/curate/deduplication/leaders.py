"""Leaders: each vector is kept, or points to an earlier kept vector of which it is a near-duplicate.

A vector is kept if no earlier kept vector is within the threshold. Otherwise it is a duplicate of the nearest of these.
Groups made this way do not chain: every duplicate is within the threshold of its kept vector, and no two kept vectors
are within it. (Connected components, the other usual definition, join a to z by way of b, c, … although the two are
dissimilar.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK = 1_024
_CELLS = 1 << 24  # similarities per product: 64 MiB
KEPT = -1


@dataclass(frozen=True)
class Leaders:
    """The leader of each vector.

    Attributes:
        leader: int64 (n,), the kept vector of which this one is a duplicate; −1 if it is kept itself.
        score: float32 (n,), their similarity; 1 if it is kept itself.
    """

    leader: NDArray[np.int64]
    score: NDArray[np.float32]


def find_leaders(vectors: Sequence[NDArray[np.float32]], threshold: float) -> Leaders:
    """Keep each vector that resembles no earlier kept one.

    Args:
        vectors: for each modality, float32 (n, dim), L2-normalised. The similarity of two rows is the least of their
            cosines over the modalities.
        threshold: least similarity at which two rows count as the same.
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
    """The nearest kept vector of each vector in a block, and their similarity."""
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
    """Compare a block with itself, in order; updates `nearest` and `best` in place, and returns the newly kept ones."""
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
    """The least of the modalities' cosines, float32 (rows, others)."""
    found: torch.Tensor | None = None
    for tensor in tensors:
        own = tensor[torch.from_numpy(rows)] @ tensor[torch.from_numpy(others)].T
        found = own if found is None else torch.minimum(found, own)
    assert found is not None
    return found
