"""Cross-batch memory: vectors of past batches as additional negatives.

    L = 1/2n Σᵢ −log exp(lᵢᵢ) / (Σⱼ exp(lᵢⱼ) + Σ_q exp(s·⟨imageᵢ, text_q⟩))  in both directions

with vectors (n, dim) of length 1 and a queue of the last `size` pairs, detached, with their ids. Entries that share a
picture or a caption with the row are masked. Wang et al., arXiv:1912.06798 (XBM). Features drift slowly only after the
first steps, so the queue is used after a warm-up, during which it fills.

Do not use it with a learning rate so high that the queue's features belong to a different model.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from encoders.losses.pairs import Pairs, Shard, both_ways, not_negatives, same_ids


class MemoryBank(nn.Module):
    """The queue and the loss. Its buffers belong in the checkpoint. In each step, call it, then step, then `enqueue`.

    Raises:
        ValueError: the size is below 1, or the warm-up is negative.
    """

    images: torch.Tensor
    texts: torch.Tensor
    image_ids: torch.Tensor
    text_ids: torch.Tensor
    filled: torch.Tensor
    next: torch.Tensor
    steps: torch.Tensor

    def __init__(self, size: int, dim: int, warmup_steps: int = 0) -> None:
        super().__init__()
        if size < 1 or warmup_steps < 0:
            raise ValueError(
                f"memory_bank: size {size}, warmup_steps {warmup_steps}: give a size of 1 or more, steps of 0 or more"
            )
        self.warmup_steps = warmup_steps
        self.register_buffer("images", torch.zeros(size, dim))
        self.register_buffer("texts", torch.zeros(size, dim))
        self.register_buffer("image_ids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("text_ids", torch.zeros(size, dtype=torch.int64))
        for name in ("filled", "next", "steps"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def forward(self, shard: Shard) -> torch.Tensor:
        """The loss, a scalar; it is InfoNCE while the queue is empty or warming up."""
        masked = not_negatives(shard)
        filled = int(self.filled) if int(self.steps) >= self.warmup_steps else 0
        past = same_ids(shard, self.image_ids[:filled], self.text_ids[:filled])
        total = shard.pairs.image.new_zeros(())
        local = shard.local
        queues = ((local.image, self.texts), (local.text, self.images))
        for cosines, (mine, queue) in zip(both_ways(shard), queues, strict=True):
            cosines = torch.cat([cosines, mine @ queue[:filled].to(mine.dtype).T], dim=1)
            logits = (cosines * shard.pairs.scale).masked_fill(torch.cat([masked, past], dim=1), float("-inf"))
            total = total + cross_entropy(logits, shard.targets, reduction="sum")
        return shard.mean(total / 2)

    @torch.no_grad()
    def enqueue(self, pairs: Pairs) -> None:
        """Put the pairs of a batch, from all processes, in place of the oldest ones in the queue. This ends a step.

        Raises:
            ValueError: the pairs have no ids, so a picture could become its own negative.
        """
        if pairs.image_ids is None or pairs.text_ids is None:
            raise ValueError("memory_bank: the pairs lack image_ids or text_ids, which the queue masks by; give both")
        size = len(self.images)
        kept = pairs[slice(max(len(pairs) - size, 0), None)]
        assert kept.image_ids is not None
        assert kept.text_ids is not None
        places = (self.next + torch.arange(len(kept), device=self.images.device)) % size
        self.images[places] = kept.image.detach().to(self.images.dtype)
        self.texts[places] = kept.text.detach().to(self.texts.dtype)
        self.image_ids[places] = kept.image_ids
        self.text_ids[places] = kept.text_ids
        self.next.copy_((self.next + len(kept)) % size)
        self.filled.copy_((self.filled + len(kept)).clamp(max=size))
        self.steps += 1
