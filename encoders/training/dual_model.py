"""The dual tower as a trainable model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from encoders.dual.model import DualTower
from encoders.images.transform import ImageTransform
from encoders.protocol import Modality
from encoders.training.models import Batch, FrozenPart, Tower, padded_tokens, plain_pixels


class DualModel(nn.Module):
    """Implements `encoders.training.models.Model`, which documents the methods."""

    def __init__(self, dual: DualTower, directory: Path | None = None) -> None:
        super().__init__()
        self.dual = dual
        self.directory = directory
        self.dim = dual.config.dim

    @property
    def transform(self) -> ImageTransform:
        """The transform of the image tower."""
        return self.dual.config.transform

    @property
    def log_scale(self) -> nn.Parameter:
        """The logarithm of the logit scale, shape ()."""
        return self.dual.logit_scale

    @property
    def bias(self) -> nn.Parameter | None:
        """The logit bias, shape (); None if there is none."""
        return self.dual.logit_bias

    def image(self, batch: Batch) -> torch.Tensor:
        """Vectors (n, dim) of the pictures, not L2-normalised."""
        if "image_features" in batch:
            return self.dual.image_head(batch["image_features"])
        return self.dual.image_features(batch["pixel_values"])

    def text(self, batch: Batch) -> torch.Tensor:
        """Vectors (n, dim) of the captions, not L2-normalised."""
        if "text_features" in batch:
            return self.dual.text_head(batch["text_features"])
        return self.dual.text_features(batch)

    def tower(self, modality: Modality) -> Tower:
        """The backbone and the head of a tower."""
        if modality == "image":
            return Tower(backbone=self.dual.image_backbone, heads=(self.dual.image_head,))
        outside = self.dual.text_backbone.model is None
        return Tower(backbone=None if outside else self.dual.text_backbone, heads=(self.dual.text_head,))

    def frozen_part(self, modality: Modality, *, head_trains: bool) -> FrozenPart | None:
        """The pretrained backbone's own vectors, if the head normalises its input and the backbone is untuned."""
        config = self.dual.config
        origin = (config.image if modality == "image" else config.text).get("origin")
        if origin is None or not config.normalise:
            return None
        return FrozenPart(fingerprint=origin["tower"], spec=origin["spec"], final=False)

    def mark_tuned(self, modality: Modality) -> None:
        """Forget the origin of the backbone, whose vectors no longer equal its features."""
        config = self.dual.config
        part: dict[str, Any] = config.image if modality == "image" else config.text
        forgotten = {**part, "origin": None}
        self.dual.config = replace(config, image=forgotten) if modality == "image" else replace(config, text=forgotten)

    def tokenize(self, captions: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Token ids and mask of captions, each int64 (n, tokens).

        Raises:
            ValueError: the text backbone runs outside torch, so the batch must hold its features.
        """
        backbone = self.dual.text_backbone
        if backbone.tokenizer is None:
            raise ValueError(f"text backbone {backbone.kind!r}: takes no tokens; read its features from a table")
        return padded_tokens(backbone.tokenizer, captions, int(self.dual.config.text["max_tokens"]), to_max=False)

    def pixels(self, pictures: Sequence[NDArray[np.uint8]]) -> Batch:
        """Prepared pictures as `pixel_values`."""
        return plain_pixels(pictures, self.transform)

    def save(self, directory: Path) -> Path:
        """Write the dual tower to a directory; returns the directory."""
        return self.dual.save(directory)
