"""VSE++: a hinge on the hardest negative of each row.

    L = 1/n Σᵢ [ max_{j≠i} (m − ⟨imageᵢ, textᵢ⟩ + ⟨imageᵢ, textⱼ⟩)₊
              + max_{j≠i} (m − ⟨imageᵢ, textᵢ⟩ + ⟨textᵢ, imageⱼ⟩)₊ ]

with vectors (n, dim) of length 1 and margin m; the logit scale has no effect. Pairs that share a picture or a caption
are not negatives. Faghri et al., arXiv:1707.05612.

Do not use it with randomly initialised heads: the gradient of the single hardest pair is too noisy at first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from encoders.losses.pairs import Shard, both_ways, not_negatives


def max_of_hinges(margin: float = 0.2) -> Callable[[Shard], torch.Tensor]:
    """The loss for a margin m, a difference of cosines.

    Raises:
        ValueError: the margin is not positive.
    """
    if margin <= 0:
        raise ValueError(f"max_of_hinges: margin {margin}: give more than 0")

    def loss(shard: Shard) -> torch.Tensor:
        out = not_negatives(shard)
        out[torch.arange(shard.rows, device=out.device), shard.targets] = True
        total = shard.pairs.image.new_zeros(())
        for cosines in both_ways(shard):
            own = cosines.gather(1, shard.targets[:, None])
            hinges = (margin - own + cosines).clamp(min=0).masked_fill(out, 0.0)
            total = total + hinges.amax(dim=1).sum()
        return shard.mean(total)

    return loss
