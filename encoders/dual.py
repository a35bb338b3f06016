"""The dual tower of isthmus: any vision backbone, any text backbone, a projection head on each, a logit scale.

One directory holds it: `isthmus_dual.json` (architecture and preprocessing), `model.safetensors` (all weights), and
the tokenizer's files. Loading needs nothing else, but for a text backbone of `use-multilingual`, whose frozen numpy
model comes from its package.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from encoders.device import Runtime
from encoders.digest import digest_json
from encoders.directories import DUAL_CONFIG, load_tokenizer, tokenizer_digest, weights_digest
from encoders.dual_backbones import ImageBackbone, TextBackbone
from encoders.images.transform import ImageTransform
from encoders.protocol import Encoder, EncoderCard, EncoderOptions, TextVectors, TowerCard
from encoders.registry import Description
from encoders.text import TextTower
from encoders.towers import ImageTower, TowersEncoder

Head = Literal["linear", "mlp"]
WEIGHTS = "model.safetensors"
_INITIAL_SCALE = math.log(1 / 0.07)


@dataclass(frozen=True, kw_only=True)
class DualConfig:
    """The architecture of a dual tower.

    Attributes:
        dim: length of the vectors.
        head: a linear projection, or two layers with a GELU between.
        image: the vision backbone: its kind, configuration and transform.
        text: the text backbone: its kind, configuration, pooling and longest input.
        bias: whether there is a learnable logit bias (SigLIP's loss wants one).
    """

    dim: int
    head: Head
    image: dict[str, Any]
    text: dict[str, Any]
    bias: bool = False

    @property
    def transform(self) -> ImageTransform:
        """What the vision backbone wants to see."""
        return ImageTransform.from_dict(self.image["transform"])


class DualTower(nn.Module):
    """Two backbones, two heads, one space. `forward` gives (image vectors, text vectors, logit scale)."""

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
        cls, image: str, text: str, *, dim: int = 256, head: Head = "linear", bias: bool = False
    ) -> DualTower:
        """A dual tower on pretrained backbones, with fresh heads.

        Args:
            image: `efficientnet-lite0`, or the directory of a vision model.
            text: `use-multilingual`, `minilm`, or the directory of a text model.
            dim: length of the vectors.
            head: see `DualConfig`.
            bias: see `DualConfig`.

        Raises:
            ValueError: a backbone is of the wrong modality or cannot be loaded.
        """
        config = DualConfig(
            dim=dim, head=head, image=ImageBackbone.describe(image), text=TextBackbone.describe(text), bias=bias
        )
        model = cls(config)
        model.image_backbone.load_pretrained(image)
        model.text_backbone.load_pretrained(text)
        return model

    @classmethod
    def from_directory(cls, directory: str | Path) -> DualTower:
        """A saved dual tower.

        Raises:
            ValueError: the directory holds none, or its weights do not fit.
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
        """Write the model to a directory, which `isthmus embed --encoder` then takes."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().contiguous().clone() for name, tensor in self.state_dict().items()}
        save_file(state, folder / WEIGHTS)
        self.text_backbone.save_tokenizer(folder)
        (folder / DUAL_CONFIG).write_text(json.dumps(asdict(self.config), indent=2, sort_keys=True))
        return folder

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (n, 3, height, width) → vectors (n, dim), not normalised."""
        return self.image_head(self.image_backbone(pixel_values))  # type: ignore[no-any-return]

    def text_features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """A token batch, or `{"features": (n, backbone dim)}` of a frozen backbone → vectors (n, dim), not
        normalised."""
        return self.text_head(self.text_backbone(batch))  # type: ignore[no-any-return]

    def forward(
        self, pixel_values: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """L2-normalised image and text vectors (n, dim), and the logit scale (the factor, not its logarithm)."""
        image = nn.functional.normalize(self.image_features(pixel_values), dim=-1)
        text = nn.functional.normalize(self.text_features(batch), dim=-1)
        return image, text, self.logit_scale.exp()


def read_dual_config(directory: Path) -> DualConfig:
    """The architecture in a directory.

    Raises:
        ValueError: it is not there or cannot be read.
    """
    try:
        return DualConfig(**json.loads((directory / DUAL_CONFIG).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"encoder {directory}: {DUAL_CONFIG} cannot be read: {error}") from error


def describe(spec: str) -> Description:
    """The card of a saved dual tower."""
    directory = Path(spec)
    config = read_dual_config(directory)
    weights = weights_digest(directory)
    space = digest_json(["dual", weights])
    frozen = config.text["kind"] == "use-multilingual"
    tokenizer = str(config.text["weights"]) if frozen else tokenizer_digest(directory)
    image = TowerCard(
        modality="image",
        dim=config.dim,
        space=space,
        weights=weights,
        tokenizer=None,
        preprocessing=config.transform.digest,
    )
    text = TowerCard(
        modality="text",
        dim=config.dim,
        space=space,
        weights=weights,
        tokenizer=tokenizer,
        preprocessing=digest_json([config.text["pooling"], config.text["max_tokens"]]),
    )
    card = EncoderCard(name=f"dual:{directory.name}", spec=str(directory.resolve()), towers=(image, text))
    return Description(card=card, image_transform=config.transform)


def load(spec: str, options: EncoderOptions) -> Encoder:
    """The encoder of a saved dual tower.

    Raises:
        ValueError: the directory cannot be used.
    """
    description = describe(spec)
    runtime = Runtime(options)
    model = DualTower.from_directory(spec)
    runtime.place(model)
    config = model.config
    image = ImageTower(transform=config.transform, forward=model.image_features, dim=config.dim, runtime=runtime)
    if model.text_backbone.kind == "use-multilingual":
        return _FrozenTextEncoder(description.card, image, model, options, runtime)
    text = TextTower(
        tokenizer=load_tokenizer(Path(spec)),
        forward=model.text_features,
        max_tokens=int(config.text["max_tokens"]),
        pad_to_max=False,
        dim=config.dim,
        runtime=runtime,
        policy=options.text_policy,
    )
    return TowersEncoder(description.card, image=image, text=text)


class _FrozenTextEncoder(TowersEncoder):
    """A dual tower whose text backbone is a frozen encoder: its vectors go through the head."""

    def __init__(
        self, card: EncoderCard, image: ImageTower, model: DualTower, options: EncoderOptions, runtime: Runtime
    ) -> None:
        super().__init__(card, image=image)
        from encoders.registry import load as load_encoder

        self._backbone = load_encoder("use-multilingual", options)
        self._model = model
        self._runtime = runtime

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Vectors (n, dim) of n captions."""
        found = self._backbone.encode_texts(texts)
        vectors = np.zeros((len(texts), self._model.config.dim), np.float32)
        if len(texts):
            vectors[:] = self._runtime.run(self._features, list(found.vectors))
        vectors[found.rejected] = 0.0
        return TextVectors(vectors=vectors, overlong=found.overlong, rejected=found.rejected)

    def _features(self, rows: Sequence[NDArray[np.float32]]) -> torch.Tensor:
        return self._model.text_features({"features": self._runtime.tensor(np.stack(rows))})


def _head(inputs: int, config: DualConfig) -> nn.Module:
    if config.head == "linear":
        return nn.Linear(inputs, config.dim, bias=False)
    if config.head == "mlp":
        return nn.Sequential(nn.Linear(inputs, config.dim * 2), nn.GELU(), nn.Linear(config.dim * 2, config.dim))
    raise ValueError(f"head {config.head!r}: give 'linear' or 'mlp'")
