"""Pairwise sigmoid loss: each pair of a picture and a caption is a binary classification.

    L = −1/n Σᵢⱼ log σ( zᵢⱼ · (s·⟨imageᵢ, textⱼ⟩ + b) ),   zᵢⱼ = 1 where i = j, else −1

with vectors (n, dim) of length 1, and a learnable factor s and bias b (initially s = 10, b = −10: most pairs do not
match). Pairs that share a picture or a caption without being partners are left out. Zhai et al., arXiv:2303.15343.

Do not use it without a bias: with b = 0 the first steps only push everything apart.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from encoders.losses.pairs import Shard, not_negatives


def siglip(shard: Shard) -> torch.Tensor:
    """The loss, a scalar; a missing bias counts as 0."""
    pairs = shard.pairs
    logits = shard.local.image @ pairs.text.T * pairs.scale
    if pairs.bias is not None:
        logits = logits + pairs.bias
    signs = -torch.ones_like(logits)
    signs[torch.arange(shard.rows, device=logits.device), shard.targets] = 1.0
    terms = logsigmoid(signs * logits).masked_fill(not_negatives(shard), 0.0)
    return shard.mean(-terms.sum())
