"""Directories of a dual tower: their configuration and their card, read without torch."""

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
        dim: length of the vectors.
        head: a linear projection, or two layers with a GELU between.
        image: the vision backbone: its kind, configuration and transform.
        text: the text backbone: its kind, configuration, pooling and longest input.
        bias: whether there is a learnable logit bias (SigLIP's loss wants one).
        normalise: whether heads first bring their input to a length of √dim. It makes them blind to the length of
            the backbone's features, so that normalised ones, as tables hold them, serve as well.
        dropout: share of a head's inputs that training drops.
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
        """What the vision backbone wants to see."""
        return ImageTransform.from_dict(self.image["transform"])


def read_dual_config(directory: Path) -> DualConfig:
    """The architecture in a directory.

    Raises:
        ValueError: it is not there or cannot be read.
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
        ValueError: the directory cannot be used, or its frozen text backbone is another one than here.
    """
    from encoders.dual.encoder import load_dual

    return load_dual(Path(spec), describe(spec), options)
