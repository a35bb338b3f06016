"""Directories of dual towers: their configuration and their card, read without torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from encoders.description import Description
from encoders.digest import digest_json
from encoders.families.directories import DUAL_CONFIG, identity, model_digest, tokenizer_digest
from encoders.images.transform import ImageTransform
from encoders.protocol import Encoder, EncoderCard, EncoderOptions, TowerCard

NEEDS = ("encoders.dual.encoder",)
Head = Literal["linear", "mlp"]


@dataclass(frozen=True, kw_only=True)
class DualConfig:
    """The architecture of a dual tower.

    Attributes:
        dim: dimension of the vectors.
        head: `linear` is one linear projection; `mlp` is two linear layers with a GELU between them.
        image: the vision backbone: its kind, configuration and transform (see `ImageBackbone.describe`).
        text: the text backbone: its kind, configuration, pooling and longest input (see `TextBackbone.describe`).
        bias: whether the model has a learnable logit bias, which the sigmoid loss of SigLIP needs.
        normalise: whether the heads first scale their input to length √dim. They then ignore the length of the
            backbone's features, so that the normalised vectors of a table can stand in for the features.
        dropout: share of a head's inputs that is dropped in training, 0 to 1.
    """

    dim: int
    head: Head
    image: dict[str, Any]
    text: dict[str, Any]
    bias: bool = False
    normalise: bool = False
    dropout: float = 0.0

    @property
    def transform(self) -> ImageTransform:
        """The transform of the vision backbone."""
        return ImageTransform.from_dict(self.image["transform"])


def read_dual_config(directory: Path) -> DualConfig:
    """The architecture stored in a directory.

    Raises:
        ValueError: the directory has no such file, or it cannot be read.
    """
    try:
        return DualConfig(**json.loads((directory / DUAL_CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"encoder {directory}: {DUAL_CONFIG} cannot be read: {error}") from error


def describe(spec: str) -> Description:
    """The card of a saved dual tower."""
    directory = Path(spec)
    config = read_dual_config(directory)
    weights = model_digest(directory, asdict(config))
    space = digest_json(["dual", weights])
    frozen = config.text["kind"] == "use-multilingual"
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
        tokenizer=str(config.text["weights"]) if frozen else tokenizer_digest(directory),
        preprocessing=digest_json([config.text["pooling"], config.text["max_tokens"]]),
    )
    short, found_again = identity(directory)
    card = EncoderCard(name=f"dual:{short}", spec=found_again, towers=(image, text))
    return Description(card=card, image_transform=config.transform)


def load(spec: str, options: EncoderOptions) -> Encoder:
    """The encoder of a saved dual tower.

    Raises:
        ValueError: the directory cannot be read, or the heads were trained on another version of the frozen text
            backbone than the installed one.
    """
    from encoders.dual.encoder import load_dual

    return load_dual(Path(spec), describe(spec), options)
