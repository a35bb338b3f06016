"""The backbones of a dual tower: for each kind, its description, how it is built, and how it gets its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from encoders.families.directories import ModelConfig
from encoders.families.loading import load_model, load_tokenizer
from encoders.families.packaged import minilm_directory
from encoders.families.pooling import pool_tokens, pooling_of
from encoders.families.single_tower import is_vision, max_tokens_of, vision_dim, vision_features
from encoders.images.transform import load_transform
from encoders.protocol import Modality

_EFFICIENTNETS = ("efficientnet-lite0", "efficientnet-lite0-stages")


class ImageBackbone(nn.Module):
    """A vision model without its head: `efficientnet-lite0` (or `-stages`), or any vision model of transformers."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.kind = str(description["kind"])
        if self.kind in _EFFICIENTNETS:
            from encoders.families.efficientnet_lite import FEATURES, STAGES, EfficientNetLite0

            stages = self.kind != _EFFICIENTNETS[0]
            self.model: Any = EfficientNetLite0()
            self.dim = FEATURES + sum(STAGES.values()) if stages else FEATURES
            self._features: Any = self.model.stages if stages else self.model
            return
        config = _config(description["config"])
        self.model = _from_config(config)
        self.dim = int(description["dim"])
        self._features = vision_features(self.model, config.model_type)

    @staticmethod
    def describe(spec: str) -> dict[str, Any]:
        """The JSON-ready description of the backbone that `spec` names.

        Raises:
            ValueError: the spec does not name a vision model.
        """
        if spec in _EFFICIENTNETS:
            from encoders.families.efficientnet_files import TRANSFORM

            return {"kind": spec, "transform": TRANSFORM.to_dict(), "origin": _origin(spec, "image")}
        directory = Path(spec)
        config = ModelConfig(directory)
        if not is_vision(config):
            raise ValueError(f"image backbone {spec!r}: {config.model_type} is not a vision model; give one that is")
        transform = load_transform(directory).to_dict()
        return {
            "kind": "transformers",
            "config": config.full.to_dict(),
            "dim": vision_dim(config),
            "transform": transform,
            "origin": _origin(spec, "image"),
        }

    def load_pretrained(self, spec: str) -> None:
        """Load the weights of the backbone that `spec` names."""
        if self.kind in _EFFICIENTNETS:
            from encoders.families.efficientnet_lite import load_pretrained

            self.model.load_state_dict(load_pretrained().state_dict())
            return
        self.model.load_state_dict(_pretrained(Path(spec)).state_dict())

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (n, 3, height, width) → features (n, `dim`)."""
        return self._features(pixel_values)


class TextBackbone(nn.Module):
    """A text model without its head: any text model of transformers, or the frozen `use-multilingual`.

    The frozen model is not part of this module: `forward` takes its vectors as features.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.kind = str(description["kind"])
        self._pooling = description["pooling"]
        self.tokenizer: Any = None
        self.model: nn.Module | None = None
        if self.kind == "use-multilingual":
            self.dim = int(description["dim"])
            return
        config = _config(description["config"])
        self.model = _from_config(config)
        self.dim = int(config.hidden_size)

    @staticmethod
    def describe(spec: str) -> dict[str, Any]:
        """The JSON-ready description of the backbone that `spec` names.

        Raises:
            ValueError: the spec does not name a text model.
        """
        if spec == "use-multilingual":
            from encoders.families.use_multilingual import DIM, describe

            weights = describe(spec).card.towers[0].weights
            settings = {"pooling": None, "max_tokens": None, "origin": _origin(spec, "text")}
            return {"kind": spec, "dim": DIM, "weights": weights, **settings}
        directory = _text_directory(spec)
        config = ModelConfig(directory)
        if is_vision(config):
            raise ValueError(f"text backbone {spec!r}: {config.model_type} is not a text model; give one that is")
        return {
            "kind": "transformers",
            "config": config.full.to_dict(),
            "pooling": pooling_of(directory),
            "max_tokens": max_tokens_of(config),
            "origin": _origin(spec, "text"),
        }

    def load_pretrained(self, spec: str) -> None:
        """Load the weights and the tokenizer of the backbone that `spec` names."""
        if self.model is None:
            return
        directory = _text_directory(spec)
        self.model.load_state_dict(_pretrained(directory).state_dict())
        self.use_tokenizer_of(directory)

    def use_tokenizer_of(self, directory: Path) -> None:
        """Load a directory's tokenizer, so that it is saved with the model."""
        if self.model is not None:
            self.tokenizer = load_tokenizer(directory)

    def save_tokenizer(self, directory: Path) -> None:
        """Write the tokenizer's files to a directory."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(directory)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """A token batch, or `{"features": (n, dim)}` if the backbone is frozen → features (n, `dim`)."""
        if self.model is None:
            return batch["features"]
        mask = batch["attention_mask"]
        hidden = self.model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        return pool_tokens(hidden, mask, self._pooling)


def _origin(spec: str, modality: Modality) -> dict[str, str]:
    """The encoder whose vectors equal this backbone's features until the backbone is fine-tuned."""
    from encoders.registry import describe

    tower = describe(spec).card.tower(modality)
    if tower is None:
        raise ValueError(f"{modality} backbone {spec!r}: has no {modality} tower; give an encoder that has one")
    return {"spec": spec, "tower": tower.fingerprint}


def _text_directory(spec: str) -> Path:
    return minilm_directory() if spec == "minilm" else Path(spec)


def _config(data: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    # The backbone may be stored in half precision; a dual tower is float32, so that it can be trained.
    return AutoConfig.for_model(**{**data, "dtype": "float32"})


def _from_config(config: Any) -> nn.Module:
    """A model with freshly initialised weights, without pooler: nothing reads it, and DDP would miss its gradients."""
    from transformers import AutoModel

    return _without_pooler(AutoModel.from_config(config))


def _pretrained(directory: Path) -> nn.Module:
    from transformers import AutoModel

    return _without_pooler(load_model(AutoModel, directory))


def _without_pooler(model: Any) -> nn.Module:
    pooler = getattr(model, "pooler", None)
    if pooler is not None and any(True for _ in pooler.parameters()):
        model.pooler = None
    return model
