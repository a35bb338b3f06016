"""A two-tower family of transformers (CLIP, SigLIP, …) as a trainable model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from encoders.families.directories import ModelConfig
from encoders.families.loading import load_model, load_tokenizer
from encoders.families.two_tower import FAMILIES, describe, max_tokens_of
from encoders.images.transform import ImageTransform
from encoders.protocol import Modality
from encoders.saving import replacing
from encoders.training.models import Batch, FrozenPart, Tower, padded_tokens, plain_pixels

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_HEADS: dict[Modality, tuple[str, ...]] = {"image": ("visual_projection",), "text": ("text_projection",)}
_BACKBONES: dict[Modality, str] = {"image": "vision_model", "text": "text_model"}


class FamilyModel(nn.Module):
    """Implements `encoders.training.models.Model`, which documents the methods."""

    def __init__(self, directory: Path) -> None:
        """Load the model.

        Raises:
            ValueError: the directory cannot be used.
        """
        import transformers

        super().__init__()
        config = ModelConfig(directory)
        self.directory = directory
        self.family = FAMILIES[config.model_type]
        self.network = load_model(getattr(transformers, self.family.model), directory)
        self._tokenizer = load_tokenizer(directory)
        self._max_tokens = max_tokens_of(config)
        description = describe(str(directory))
        assert description.image_transform is not None
        self.transform: ImageTransform = description.image_transform
        self._card = description.card
        self.dim = description.card.towers[0].dim

    @property
    def log_scale(self) -> nn.Parameter:
        """The logarithm of the logit scale, shape () or (1,)."""
        return self.network.logit_scale

    @property
    def bias(self) -> nn.Parameter | None:
        """SigLIP's logit bias; None in other families."""
        return getattr(self.network, "logit_bias", None)

    def image(self, batch: Batch) -> torch.Tensor:
        """Vectors (n, dim) of the pictures, not L2-normalised."""
        if "image_features" in batch:
            return batch["image_features"]
        names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
        inputs = {name: batch[name] for name in names if name in batch}
        return self.network.get_image_features(**inputs).pooler_output

    def text(self, batch: Batch) -> torch.Tensor:
        """Vectors (n, dim) of the captions, not L2-normalised."""
        if "text_features" in batch:
            return batch["text_features"]
        inputs = {"input_ids": batch["input_ids"]}
        if self.family.masked:
            inputs["attention_mask"] = batch["attention_mask"]
        return self.network.get_text_features(**inputs).pooler_output

    def tower(self, modality: Modality) -> Tower:
        """The backbone and the projections of a tower."""
        heads = tuple(getattr(self.network, name) for name in _HEADS[modality] if hasattr(self.network, name))
        return Tower(backbone=getattr(self.network, _BACKBONES[modality]), heads=heads)

    def frozen_part(self, modality: Modality, *, head_trains: bool) -> FrozenPart | None:
        """The vectors of a wholly frozen tower. A head that trains would need features, which no table holds."""
        tower = self._card.tower(modality)
        if head_trains or tower is None:
            return None
        return FrozenPart(fingerprint=tower.fingerprint, spec=str(self.directory), final=True)

    def mark_tuned(self, modality: Modality) -> None:
        """Nothing to do: the card describes the directory that was loaded."""

    def tokenize(self, captions: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Token ids and mask of captions, each int64 (n, tokens)."""
        return padded_tokens(self._tokenizer, captions, self._max_tokens, to_max=self.family.pad_to_max)

    def pixels(self, pictures: Sequence[NDArray[np.uint8]]) -> Batch:
        """Prepared pictures as the family's image tower takes them."""
        return plain_pixels(pictures, self.transform)

    def save(self, directory: Path) -> Path:
        """Write the model, the tokenizer and the processor's configuration, in the format of transformers."""
        with replacing(directory) as folder:
            self.network.save_pretrained(folder)
            self._tokenizer.save_pretrained(folder)
            for name in _PROCESSOR_FILES:
                if (self.directory / name).is_file():
                    shutil.copy(self.directory / name, folder / name)
        return directory
