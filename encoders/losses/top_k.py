"""InfoNCE against only the K hardest negatives of the batch.

    L = 1/2n Σᵢ [ −log exp(lᵢᵢ) / (exp(lᵢᵢ) + Σ_{j ∈ top-K} exp(lᵢⱼ)) ]  in both directions,  lᵢⱼ = s·⟨imageᵢ, textⱼ⟩

with vectors (n, dim) of length 1. K = n − 1 is InfoNCE. Pairs that share a picture or a caption are not negatives.
Online hard example mining, Shrivastava et al., arXiv:1604.03540, in the contrastive form.

Do not use it at the start of training, nor with captions that often fit other pictures too: the hardest negatives are
then false negatives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from encoders.losses.pairs import Shard, both_ways, not_negatives


def top_k(k: int) -> Callable[[Shard], torch.Tensor]:
    """The loss for the K = `k` hardest negatives.

    Raises:
        ValueError: `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"top_k: k {k}: give at least 1 negative")

    def loss(shard: Shard) -> torch.Tensor:
        masked = not_negatives(shard)
        total = sum((_direction(shard, cosines, masked, k) for cosines in both_ways(shard)), torch.zeros(()))
        return shard.mean(total / 2)

    return loss


def _direction(shard: Shard, cosines: torch.Tensor, masked: torch.Tensor, k: int) -> torch.Tensor:
    logits = cosines * shard.pairs.scale
    own = logits.gather(1, shard.targets[:, None])
    negatives = logits.masked_fill(masked, float("-inf")).scatter(1, shard.targets[:, None], float("-inf"))
    hardest = negatives.topk(min(k, negatives.shape[1]), dim=1).values
    return (torch.cat([own, hardest], dim=1).logsumexp(dim=1) - own[:, 0]).sum()
