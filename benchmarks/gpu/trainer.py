"""A training step of the product on pairs that lie on the device: ViT-B/32 and BERT-base with fresh heads."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from benchmarks.gpu.base import Bench
from benchmarks.gpu.models import directory
from benchmarks.gpu.words import BERT, VIT_B
from encoders.losses.grad_cache import cached_backward, plain_backward
from encoders.losses.infonce import info_nce
from encoders.losses.pairs import Loss, Pairs
from encoders.losses.temperature import clamp_log_scale
from encoders.training.models import Batch, open_model
from encoders.training.optimiser import make_optimiser, parameter_groups
from encoders.training.pairs import PairsModel, cut_batch, scale_of
from encoders.training.tuning import Tuning, apply_tuning

_TOKENS = 32


class Trainer:
    """A model and its optimiser, as a training process of the product holds them.

    Attributes:
        model: gives the pairs of a batch.
        bf16: whether it computes in bf16, by autocast, or in fp32.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        image: str = "full",
        text: str = "full",
        loss: Loss = info_nce,
        precision: str = "bf16",
        learning_rate: float = 1e-4,
    ) -> None:
        """Build it.

        Args:
            bench: says where.
            image: how much of the image tower trains, as `Tuning` parses it.
            text: the same for the text tower.
            loss: to be minimised.
            precision: `bf16` or `fp32`.
            learning_rate: of all parameters.
        """
        torch.manual_seed(0)
        spec = f"{directory(bench, VIT_B)}+{directory(bench, BERT)}"
        model = open_model(spec, dim=bench.pick(512, 16), bias=True)
        apply_tuning(model, "image", Tuning.parse(image))
        apply_tuning(model, "text", Tuning.parse(text))
        self.model = PairsModel(model).to(bench.device).train()
        groups = parameter_groups(self.model, learning_rate=learning_rate, weight_decay=0.1)
        self._optimiser = make_optimiser(groups)
        self.bf16 = precision == "bf16"
        self._loss, self._device = loss, bench.device

    @property
    def image_network(self) -> Any:
        """The vision model of transformers."""
        return self.model.model.dual.image_backbone.model

    @property
    def text_network(self) -> Any:
        """The text model of transformers."""
        return self.model.model.dual.text_backbone.model

    def backward(self, batch: Batch, chunk: int | None = None, forward: Any = None) -> float:
        """Fresh gradients, and the loss.

        Args:
            batch: pairs on the device.
            chunk: of GradCache; None for a plain step.
            forward: stands for the model.
        """
        self._optimiser.zero_grad(set_to_none=True)
        with self.autocast():
            if chunk is None:
                return plain_backward(forward or self.model, batch, self._loss)[0]
            return cached_backward(forward or self.model, cut_batch(batch, chunk), self._loss)[0]

    def step(self, batch: Batch, chunk: int | None = None) -> float:
        """A training step; its loss."""
        value = self.backward(batch, chunk)
        self._optimiser.step()
        clamp_log_scale(scale_of(self.model))
        return value

    def gradients(self) -> list[torch.Tensor]:
        """Copies of all gradients, in the order of the parameters."""
        return [p.grad.detach().clone() for p in self.model.parameters() if p.grad is not None]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """As the product's loop has it."""
        return torch.autocast(self._device, torch.bfloat16) if self.bf16 else contextlib.nullcontext()


def pairs(bench: Bench, count: int) -> Batch:
    """Pairs on the device: noise as pictures, tokens at random, of different lengths."""
    side, tokens = bench.pick((224, _TOKENS), (32, 8))
    device = bench.device
    random = torch.Generator(device).manual_seed(0)
    ids = torch.randint(5, 57, (count, tokens), generator=random, device=device)
    lengths = torch.randint(3, tokens + 1, (count, 1), generator=random, device=device)
    numbers = torch.arange(count, device=device)
    return {
        "pixel_values": torch.randn(count, 3, side, side, generator=random, device=device),
        "input_ids": ids,
        "attention_mask": (torch.arange(tokens, device=device)[None] < lengths).long(),
        "image_ids": numbers,
        "text_ids": numbers,
    }


def relative(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The length of the difference by that of what is wanted, over all tensors together."""
    squares = [((a - b).double().square().sum(), b.double().square().sum()) for a, b in zip(found, wanted, strict=True)]
    return float((sum(d for d, _ in squares) / sum(w for _, w in squares)) ** 0.5)


def same_random_numbers(trainer: Trainer, batch: Batch, chunk: int) -> float:
    """The greatest difference between the first and the second forward pass of a chunk, dropout on: GradCache must
    replay the random numbers, or its gradients are of other networks than its loss."""
    seen: list[torch.Tensor] = []

    def forward(part: Batch) -> Pairs:
        made = trainer.model(part)
        seen.append(made.text.detach().clone())
        return made

    trainer.backward(batch, chunk, forward)
    chunks = len(cut_batch(batch, chunk))
    again = zip(seen[: chunks - 1], seen[chunks:], strict=True)
    return max(float((first - second).abs().max()) for first, second in again)
