"""Trainable models: the dual tower and every two-tower family, behind one interface.

A batch is a flat dictionary of tensors with one row per pair, so that it can be cut anywhere. Each modality comes raw
(`pixel_values`; `input_ids` and `attention_mask`) or as the output of its frozen part (`image_features`,
`text_features`).
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
        backbone: the pretrained network; None if it runs outside torch (`use-multilingual`).
        heads: the projections on top of the backbone.
    """

    backbone: nn.Module | None
    heads: tuple[nn.Module, ...]


@dataclass(frozen=True, kw_only=True)
class FrozenPart:
    """Which stored vectors can replace the part of a tower that does not train.

    Attributes:
        fingerprint: fingerprint of the tower that makes these vectors, as tables record it.
        spec: the encoder that makes them.
        final: true if they are the tower's final vectors; false if they are the input of its head.
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
        """Vectors (n, dim) of the pictures, not L2-normalised."""
        ...

    def text(self, batch: Batch) -> torch.Tensor:
        """Vectors (n, dim) of the captions, not L2-normalised."""
        ...

    def tower(self, modality: Modality) -> Tower:
        """The backbone and the heads of a tower."""
        ...

    def frozen_part(self, modality: Modality, *, head_trains: bool) -> FrozenPart | None:
        """Which vectors can replace a tower that is frozen, or frozen except for its head; None if there are none."""
        ...

    def mark_tuned(self, modality: Modality) -> None:
        """Record that a backbone no longer equals the pretrained one."""
        ...

    def tokenize(self, captions: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Captions as `input_ids` and `attention_mask`, each int64 (n, tokens)."""
        ...

    def pixels(self, pictures: Sequence[NDArray[np.uint8]]) -> Batch:
        """Prepared pictures uint8 (height, width, 3) as the input of the image tower."""
        ...

    def save(self, directory: Path) -> Path:
        """Write a directory that `isthmus embed --encoder` reads; it replaces an existing one once it is complete."""
        ...


def open_model(spec: str, *, dim: int = 256, head: Head = "linear", dropout: float = 0.0, bias: bool = False) -> Any:
    """Open a model for training.

    Args:
        spec: directory or hub id of a dual tower or of a two-tower family; or `IMAGE+TEXT`, two backbones that get
            freshly initialised heads.
        dim: dimension of the vectors of fresh heads.
        head: kind of fresh heads, `linear` or `mlp`.
        dropout: dropout of fresh heads, 0 to 1.
        bias: whether a fresh dual tower gets a logit bias.

    Returns:
        A `Model` that is also an `nn.Module`.

    Raises:
        ValueError: the spec names nothing with two trainable towers.
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
    """Prepared pictures as `pixel_values` (n, 3, height, width), or as patches with their mask and shapes."""
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
    """Token ids and mask of captions, each int64 (n, tokens), truncated to `max_tokens`."""
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
