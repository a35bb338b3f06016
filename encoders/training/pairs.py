"""From a batch to the pairs that a loss takes: the model, its logit scale, and projections to a teacher's dimension."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from encoders.losses.pairs import Pairs
from encoders.training.models import Batch


class PairsModel(nn.Module):
    """The module that DDP and FSDP wrap. Every parameter that trains contributes to the outputs of each forward."""

    def __init__(
        self, model: Any, *, teacher_image_dim: int | None = None, teacher_text_dim: int | None = None
    ) -> None:
        """Add a projection for each modality in which the teacher's dimension differs from the model's.

        Args:
            model: a `Model`.
            teacher_image_dim: dimension of the teacher's image vectors; None if it gives none.
            teacher_text_dim: dimension of the teacher's text vectors; None if it gives none.
        """
        super().__init__()
        self.model = model
        self.project_image = _projection(model.dim, teacher_image_dim)
        self.project_text = _projection(model.dim, teacher_text_dim)

    def forward(self, batch: Batch) -> Pairs:
        """The pairs of a batch.

        An empty batch is run with one row, which is then cut off: most networks cannot take an empty batch, and DDP
        needs every parameter's gradient from every process.
        """
        if not len(next(iter(batch.values()))):
            # Call `forward`, not the module: the module's hooks would gather sharded weights a second time.
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
    """Cut a batch into pieces of at most `rows` pairs; an empty batch gives one empty piece."""
    count = len(next(iter(batch.values())))
    starts = range(0, count, rows) if count else [0]
    return [{name: tensor[start : start + rows] for name, tensor in batch.items()} for start in starts]


def scale_of(model: PairsModel) -> torch.Tensor:
    """The log scale of the model, a parameter."""
    return model.model.log_scale
