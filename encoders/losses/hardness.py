"""InfoNCE with negatives weighted by their hardness.

    L = 1/2n Σᵢ −log exp(lᵢᵢ) / (exp(lᵢᵢ) + Σ_{j≠i} wᵢⱼ exp(lᵢⱼ))  in both directions,  lᵢⱼ = s·⟨imageᵢ, textⱼ⟩
    wᵢⱼ = exp(β·⟨imageᵢ, textⱼ⟩) / mean_{j≠i} exp(β·⟨imageᵢ, textⱼ⟩),  held constant

with vectors (n, dim) of length 1. β = 0 is InfoNCE; a larger β concentrates on fewer, harder negatives. Pairs that
share a picture or a caption are not negatives. Robinson et al., arXiv:2010.04592 (without its debiasing); Radenovic et
al., arXiv:2301.02280.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from encoders.losses.pairs import Shard, both_ways, not_negatives


def hardness_weighted(beta: float) -> Callable[[Shard], torch.Tensor]:
    """The loss for a concentration β ≥ 0.

    Raises:
        ValueError: `beta` is negative.
    """
    if beta < 0:
        raise ValueError(f"hardness_weighted: beta {beta}: give 0 or more")

    def loss(shard: Shard) -> torch.Tensor:
        out = not_negatives(shard)
        own = torch.zeros_like(out)
        own[torch.arange(shard.rows, device=out.device), shard.targets] = True
        total = shard.pairs.image.new_zeros(())
        for cosines in both_ways(shard):
            logits = cosines * shard.pairs.scale + _log_weights(cosines, out | own, beta).masked_fill(own, 0.0)
            logits = logits.masked_fill(out, float("-inf"))
            total = total + torch.nn.functional.cross_entropy(logits, shard.targets, reduction="sum")
        return shard.mean(total / 2)

    return loss


def _log_weights(cosines: torch.Tensor, left_out: torch.Tensor, beta: float) -> torch.Tensor:
    """log w (rows, n), with the mean over the entries that are not left out; zero in a row without negatives."""
    hardness = (cosines.detach() * beta).masked_fill(left_out, float("-inf"))
    count = (~left_out).sum(dim=1, keepdim=True).clamp(min=1)
    mean = hardness.logsumexp(dim=1, keepdim=True) - count.to(hardness.dtype).log()
    return torch.where(left_out, torch.zeros_like(hardness), hardness - mean)
