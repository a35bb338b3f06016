"""The dual tower of isthmus: any vision backbone, any text backbone, a projection head on each, and a logit scale.

One directory holds it: `isthmus_dual.json` (architecture and preprocessing), `model.safetensors` (all weights), and the
tokenizer's files. Loading needs nothing else. The exception is the text backbone `use-multilingual`: its frozen numpy
model comes from its package.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from encoders.dual.backbones import ImageBackbone, TextBackbone
from encoders.dual.card import DualConfig, Head, read_dual_config
from encoders.families.directories import DUAL_CONFIG, weights_digest
from encoders.saving import replacing

WEIGHTS = "model.safetensors"
_INITIAL_SCALE = math.log(1 / 0.07)


class DualTower(nn.Module):
    """Two backbones and two heads that map to one space. `forward` gives (image vectors, text vectors, logit scale)."""

    def __init__(self, config: DualConfig) -> None:
        super().__init__()
        self.config = config
        self.image_backbone = ImageBackbone(config.image)
        self.text_backbone = TextBackbone(config.text)
        self.image_head = _head(self.image_backbone.dim, config)
        self.text_head = _head(self.text_backbone.dim, config)
        self.logit_scale = nn.Parameter(torch.tensor(_INITIAL_SCALE))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if config.bias else None

    @classmethod
    def from_backbones(
        cls,
        image: str,
        text: str,
        *,
        dim: int = 256,
        head: Head = "linear",
        bias: bool = False,
        normalise: bool = False,
        dropout: float = 0.0,
    ) -> DualTower:
        """A dual tower on pretrained backbones, with freshly initialised heads.

        Args:
            image: `efficientnet-lite0`, `efficientnet-lite0-stages`, or the directory of a vision model.
            text: `use-multilingual`, `minilm`, or the directory of a text model.
            dim: dimension of the vectors.
            head: kind of projection, `linear` or `mlp`; see `DualConfig`.
            bias: whether there is a learnable logit bias; see `DualConfig`.
            normalise: whether the heads scale their input to length √dim; see `DualConfig`.
            dropout: share of a head's inputs that is dropped in training.

        Raises:
            ValueError: a backbone has the wrong modality or cannot be loaded.
        """
        config = DualConfig(
            dim=dim,
            head=head,
            image=ImageBackbone.describe(image),
            text=TextBackbone.describe(text),
            bias=bias,
            normalise=normalise,
            dropout=dropout,
        )
        model = cls(config)
        model.image_backbone.load_pretrained(image)
        model.text_backbone.load_pretrained(text)
        return model

    @classmethod
    def from_directory(cls, directory: str | Path) -> DualTower:
        """Load a saved dual tower.

        Raises:
            ValueError: the directory holds no dual tower, or its weights do not fit its architecture.
        """
        folder = Path(directory)
        model = cls(read_dual_config(folder))
        weights_digest(folder)
        try:
            model.load_state_dict(load_file(folder / WEIGHTS))
        except RuntimeError as error:
            raise ValueError(f"encoder {folder}: {WEIGHTS} does not fit {DUAL_CONFIG}: {error}") from error
        model.text_backbone.use_tokenizer_of(folder)
        return model

    def save(self, directory: str | Path) -> Path:
        """Write the model to a directory, which `isthmus embed --encoder` reads; an existing one is replaced at once.

        Raises:
            OSError: the directory cannot be written; the existing one stays.
        """
        state = {name: tensor.detach().contiguous().clone() for name, tensor in self.state_dict().items()}
        with replacing(directory) as folder:
            save_file(state, folder / WEIGHTS)
            self.text_backbone.save_tokenizer(folder)
            (folder / DUAL_CONFIG).write_text(json.dumps(asdict(self.config), indent=2, sort_keys=True))
        return Path(directory)

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (n, 3, height, width) → vectors (n, dim), not L2-normalised."""
        return self.image_head(self.image_backbone(pixel_values))

    def text_features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """A token batch, or `{"features": (n, backbone dim)}` with a frozen backbone → vectors (n, dim).

        The vectors are not L2-normalised.
        """
        return self.text_head(self.text_backbone(batch))

    def forward(
        self, pixel_values: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """L2-normalised image and text vectors (n, dim), and the logit scale (the factor, not its logarithm)."""
        image = nn.functional.normalize(self.image_features(pixel_values), dim=-1)
        text = nn.functional.normalize(self.text_features(batch), dim=-1)
        return image, text, self.logit_scale.exp()


class Rescale(nn.Module):
    """Scales vectors to length √dim, so that their entries are about 1."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, dim) → (n, dim)."""
        return nn.functional.normalize(features, dim=-1) * math.sqrt(features.shape[-1])


def _head(inputs: int, config: DualConfig) -> nn.Module:
    """A projection head. Without dropout and rescaling it is the bare layer, which older directories expect."""
    if config.head == "linear":
        layers: list[nn.Module] = [nn.Linear(inputs, config.dim, bias=config.normalise)]
    elif config.head == "mlp":
        layers = [nn.Linear(inputs, config.dim * 2), nn.GELU(), nn.Linear(config.dim * 2, config.dim)]
    else:
        raise ValueError(f"head: {config.head!r} is unknown; give 'linear' or 'mlp'")
    if config.dropout:
        layers.insert(0, nn.Dropout(config.dropout))
    if config.normalise:
        layers.insert(0, Rescale())
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)
