"""Models that can be trained: the dual tower, and every two-tower family, behind one face.

A batch is a flat dictionary of tensors with a row a pair, so that it can be cut anywhere. Each modality comes raw
(`pixel_values`;
`input_ids` and `attention_mask`) or as what its frozen part made of it (`image_features`, `text_features`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from encoders.dual.card import Head
from encoders.images.prepare import prepare_image
from encoders.images.transform import ImageTransform
from encoders.protocol import Modality

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Tower:
    """The parts of one tower.

    Attributes:
        backbone: the pretrained network; None where it runs elsewhere (`use-multilingual`).
        heads: projections on top of it.
    """

    backbone: nn.Module | None
    heads: tuple[nn.Module, ...]


@dataclass(frozen=True, kw_only=True)
class FrozenPart:
    """Which vectors can stand in for the part of a tower that does not train.

    Attributes:
        fingerprint: of the tower that makes them, as tables record it.
        spec: the encoder that makes them.
        final: whether they are the tower's own vectors, or what its head takes.
    """

    fingerprint: str
    spec: str
    final: bool


class Model(Protocol):
    """A model with two towers, a log scale, and perhaps a bias."""

    transform: ImageTransform
    dim: int
    log_scale: nn.Parameter
    bias: nn.Parameter | None

    def image(self, batch: Batch) -> torch.Tensor:
        """Vectors (n, dim) of the pictures, not normalised."""
        ...

    def text(self, batch: Batch) -> torch.Tensor:
        """Vectors (n, dim) of the captions, not normalised."""
        ...

    def tower(self, modality: Modality) -> Tower:
        """The parts of a tower."""
        ...

    def frozen_part(self, modality: Modality, *, head_trains: bool) -> FrozenPart | None:
        """Which vectors can stand in for a tower that is frozen, or frozen but for its head; None if there are none."""
        ...

    def mark_tuned(self, modality: Modality) -> None:
        """Say that a backbone is no longer the one that it came from."""
        ...

    def tokenize(self, captions: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Captions as `input_ids` and `attention_mask`, each int64 (n, tokens)."""
        ...

    def pixels(self, pictures: Sequence[NDArray[np.uint8]]) -> Batch:
        """Prepared pictures uint8 (height, width, 3) as the image tower takes them."""
        ...

    def save(self, directory: Path) -> Path:
        """Write a directory that `isthmus embed --encoder` takes. The former one is replaced when all is written."""
        ...


def open_model(spec: str, *, dim: int = 256, head: Head = "linear", dropout: float = 0.0, bias: bool = False) -> Any:
    """A model to train.

    Args:
        spec: a directory or hub id of a dual tower or of a two-tower family; or `IMAGE+TEXT`, two backbones that get
        fresh heads.
        dim: of fresh heads.
        head: of fresh heads, `linear` or `mlp`.
        dropout: of fresh heads.
        bias: whether a fresh dual tower gets a logit bias.

    Returns:
        A `Model` that is also an `nn.Module`.

    Raises:
        ValueError: nothing with two towers.
    """
    from encoders.dual.model import DualTower
    from encoders.registry import resolve

    if "+" in spec and not Path(spec).exists():
        from encoders.training.dual_model import DualModel

        image, _, text = spec.partition("+")
        tower = DualTower.from_backbones(
            image,
            text,
            dim=dim,
            head=head,
            bias=bias,
            normalise=True,
            dropout=dropout,
        )
        return DualModel(tower)
    module, directory = resolve(spec)
    if module == "encoders.dual.card":
        from encoders.training.dual_model import DualModel

        return DualModel(DualTower.from_directory(directory), Path(directory))
    if module == "encoders.families.two_tower":
        from encoders.training.family_model import FamilyModel

        return FamilyModel(Path(directory))
    raise ValueError(
        f"encoder {spec!r}: has one tower, or none that trains; give IMAGE+TEXT for two backbones, a dual tower, or a "
        "two-tower family"
    )


def plain_pixels(pictures: Sequence[NDArray[np.uint8]], transform: ImageTransform) -> Batch:
    """Prepared pictures, as `pixel_values` (n, 3, height, width), or as patches with their mask and shapes."""
    from encoders.families.two_tower import patchify

    if not pictures:
        # A process may have no row of a short last batch.
        blank = prepare_image(Image.new("RGB", (64, 64)), transform)
        return {name: tensor[:0] for name, tensor in plain_pixels([blank], transform).items()}
    if transform.kind != "patches":
        return {"pixel_values": torch.from_numpy(transform.normalise(list(pictures)))}
    values, mask, shapes = patchify(pictures, transform)
    names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    return {name: torch.from_numpy(array) for name, array in zip(names, (values, mask, shapes), strict=True)}


def padded_tokens(
    tokenizer: Any, captions: Sequence[str], max_tokens: int, *, to_max: bool
) -> dict[str, NDArray[np.int64]]:
    """Token ids and mask of captions, cut at `max_tokens`."""
    if not captions:
        return {name: array[:0] for name, array in padded_tokens(tokenizer, ["a"], max_tokens, to_max=to_max).items()}
    found = tokenizer(
        list(captions),
        truncation=True,
        max_length=max_tokens,
        padding="max_length" if to_max else True,
        return_attention_mask=True,
        return_tensors="np",
    )
    return {name: np.asarray(found[name], np.int64) for name in ("input_ids", "attention_mask")}
