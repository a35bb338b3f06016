"""Small towers and batches for the tests of the losses, and pieces that the naive oracles share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

from encoders.losses import Pairs


class TinyTowers(nn.Module):
    """Two towers with dropout, a scale and a bias, in fp64: enough for every way in which a gradient can go wrong."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 5))
        self.text = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 5))
        self.project = nn.Linear(5, 4)
        self.log_scale = nn.Parameter(torch.tensor(1.5))
        self.bias = nn.Parameter(torch.tensor(-1.0))
        self.double()

    def forward(self, batch: dict[str, torch.Tensor]) -> Pairs:
        image = normalize(self.image(batch["image"]), dim=1)
        text = normalize(self.text(batch["text"]), dim=1)
        return Pairs(
            image=image,
            text=text,
            scale=self.log_scale.exp(),
            bias=self.bias * 1.0,
            image_ids=batch["image_ids"],
            text_ids=batch["text_ids"],
            teacher_image=batch["teacher_image"],
            teacher_text=batch["teacher_text"],
            student_image=self.project(image),
            student_text=self.project(text),
        )


def make_batch(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """n pairs, with pictures and captions that recur."""
    generator = torch.Generator().manual_seed(seed)

    def rows(dim: int) -> torch.Tensor:
        return torch.randn(n, dim, generator=generator, dtype=torch.float64)

    return {
        "image": rows(6),
        "text": rows(7),
        "teacher_image": rows(4),
        "teacher_text": rows(4),
        "image_ids": torch.arange(n) // 2 * 2 if n > 4 else torch.arange(n),
        "text_ids": torch.randint(0, max(2, n // 2), (n,), generator=generator),
    }


def cut(batch: dict[str, torch.Tensor], start: int, stop: int) -> dict[str, torch.Tensor]:
    """Some rows of a batch."""
    return {name: tensor[start:stop] for name, tensor in batch.items()}


ALL_TERMS = (
    "infonce",
    "siglip",
    "top_k:k=3",
    "max_of_hinges:margin=0.3",
    "hardness:beta=0.7",
    "memory_bank:size=10,warmup_steps=0",
    "distill_l2",
    "distill_kl:temperature=0.2",
    "distill_kl:temperature=0.2,relation=text",
)
