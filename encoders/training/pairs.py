"""From a batch to the pairs that a loss takes: the model, its scale, and projections onto a teacher."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from encoders.losses.pairs import Pairs
from encoders.training.models import Batch


class PairsModel(nn.Module):
    """What DDP and FSDP wrap. Every parameter that trains is used in each forward, through the outputs."""

    def __init__(
        self, model: Any, *, teacher_image_dim: int | None = None, teacher_text_dim: int | None = None
    ) -> None:
        """Add projections where a teacher's vectors are of another length.

        Args:
            model: a `Model`.
            teacher_image_dim: length of the teacher's image vectors, None without.
            teacher_text_dim: the same for captions.
        """
        super().__init__()
        self.model = model
        self.project_image = _projection(model.dim, teacher_image_dim)
        self.project_text = _projection(model.dim, teacher_text_dim)

    def forward(self, batch: Batch) -> Pairs:
        """The pairs of a batch. Without a row, networks still run, on one that is cut off again: most cannot take none,
        and DDP wants every parameter's gradient from every process."""
        if not len(next(iter(batch.values()))):
            # Not by a call of itself, whose hooks would gather sharded weights within the gathering.
            return self.forward({name: tensor.new_ones((1, *tensor.shape[1:])) for name, tensor in batch.items()})[:0]
        image = normalize(self.model.image(batch).float(), dim=1)
        text = normalize(self.model.text(batch).float(), dim=1)
        bias = self.model.bias
        return Pairs(
            image=image,
            text=text,
            scale=self.model.log_scale.reshape(()).exp(),
            bias=None if bias is None else bias.reshape(()) * 1.0,
            image_ids=batch.get("image_ids"),
            text_ids=batch.get("text_ids"),
            teacher_image=batch.get("teacher_image"),
            teacher_text=batch.get("teacher_text"),
            student_image=None if self.project_image is None else self.project_image(image),
            student_text=None if self.project_text is None else self.project_text(text),
        )


def _projection(dim: int, teacher_dim: int | None) -> nn.Linear | None:
    if teacher_dim is None or teacher_dim == dim:
        return None
    linear = nn.Linear(dim, teacher_dim, bias=False)
    nn.init.orthogonal_(linear.weight, gain=math.sqrt(max(1.0, teacher_dim / dim)))
    return linear


def cut_batch(batch: Batch, rows: int) -> list[Batch]:
    """A batch in pieces of at most `rows` pairs; one empty piece of an empty batch."""
    count = len(next(iter(batch.values())))
    starts = range(0, count, rows) if count else [0]
    return [{name: tensor[start : start + rows] for name, tensor in batch.items()} for start in starts]


def scale_of(model: PairsModel) -> torch.Tensor:
    """The log scale, as a parameter."""
    return model.model.log_scale
