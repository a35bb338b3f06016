"""Symmetric InfoNCE: each picture finds its caption among all captions, and each caption its picture.

    L = 1/2n Σᵢ [ −log softmaxⱼ(s·⟨imageᵢ, textⱼ⟩)ᵢ − log softmaxⱼ(s·⟨textᵢ, imageⱼ⟩)ᵢ ]

with vectors (n, dim) of length 1 and the learnable factor s = exp(logit scale) = 1/τ. Pairs that share a picture or a
caption are left out of each other's denominators. Oord et al., arXiv:1807.03748; symmetric as in CLIP,
arXiv:2103.00020.

Do not use it for small batches of near-duplicates: with few distinct negatives, s grows to its upper bound.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from encoders.losses.pairs import Shard, both_ways, not_negatives


def info_nce(shard: Shard) -> torch.Tensor:
    """The loss, a scalar."""
    masked = not_negatives(shard)
    total = sum_of_rows(shard, masked)
    return shard.mean(total / 2)


def sum_of_rows(shard: Shard, masked: torch.Tensor) -> torch.Tensor:
    """Cross entropy summed over the local rows and both directions.

    Args:
        shard: the batch and its local rows.
        masked: bool (rows, n), true for entries that are not negatives.
    """
    total = shard.pairs.image.new_zeros(())
    for cosines in both_ways(shard):
        logits = (cosines * shard.pairs.scale).masked_fill(masked, float("-inf"))
        total = total + cross_entropy(logits, shard.targets, reduction="sum")
    return total
