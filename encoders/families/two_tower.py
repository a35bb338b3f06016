"""Two-tower families of transformers: pictures and text in one space.

CLIP (arXiv:2103.00020), SigLIP (2303.15343), SigLIP 2 (2502.14786), Chinese CLIP (2211.01335), AltCLIP (2211.06679),
MetaCLIP 2 (2507.22062). Their heads give vectors that are not normalised; `TowersEncoder` normalises them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.description import Description
from encoders.digest import digest_json
from encoders.families.directories import ModelConfig, identity, model_digest, tokenizer_digest
from encoders.images.transform import ImageTransform, load_transform
from encoders.protocol import Encoder, EncoderCard, EncoderOptions, TowerCard

if TYPE_CHECKING:
    import torch

    from encoders.runtime.device import Runtime

NEEDS, MODEL_NEEDS = ("encoders.runtime.text", "encoders.runtime.towers"), ("transformers.modeling_utils",)


@dataclass(frozen=True, kw_only=True)
class TwoTowerFamily:
    """What distinguishes one two-tower family.

    Attributes:
        model: name of the model class in transformers.
        context: text length in tokens that the family was trained with, if its position table is longer; None means the
            length of the table.
        pad_to_max: whether every text is padded to the longest input; see `TextTower`.
        masked: whether the text tower takes an attention mask.
    """

    model: str
    context: int | None = None
    pad_to_max: bool = False
    masked: bool = True


FAMILIES: dict[str, TwoTowerFamily] = {
    "clip": TwoTowerFamily(model="CLIPModel"),
    "siglip": TwoTowerFamily(model="SiglipModel", pad_to_max=True, masked=False),
    "siglip2": TwoTowerFamily(model="Siglip2Model", pad_to_max=True, masked=False),
    "chinese_clip": TwoTowerFamily(model="ChineseCLIPModel", context=52),
    "altclip": TwoTowerFamily(model="AltCLIPModel", context=77),
    "metaclip_2": TwoTowerFamily(model="MetaClip2Model"),
}


def describe(spec: str) -> Description:
    """The card of a two-tower directory."""
    directory = Path(spec)
    config = ModelConfig(directory)
    transform = load_transform(directory)
    weights = model_digest(directory, config.raw)
    family = FAMILIES[config.model_type]
    image_dim, text_dim = _dims(config)
    space = digest_json([config.model_type, weights])
    image = TowerCard(
        modality="image", dim=image_dim, space=space, weights=weights, tokenizer=None, preprocessing=transform.digest
    )
    text = TowerCard(
        modality="text",
        dim=text_dim,
        space=space,
        weights=weights,
        tokenizer=tokenizer_digest(directory),
        preprocessing=digest_json([max_tokens_of(config), family.pad_to_max]),
    )
    short, found_again = identity(directory)
    card = EncoderCard(name=f"{config.model_type}:{short}", spec=found_again, towers=(image, text))
    return Description(card=card, image_transform=transform)


def load(spec: str, options: EncoderOptions) -> Encoder:
    """The encoder of a two-tower directory.

    Raises:
        ValueError: weights are missing, or the options do not fit this machine.
    """
    from encoders.families.loading import load_model, load_tokenizer
    from encoders.runtime.deferred import Deferred
    from encoders.runtime.device import Runtime
    from encoders.runtime.text import TextTower
    from encoders.runtime.towers import ImageTower, TowersEncoder

    description = describe(spec)
    directory = Path(spec)
    config = ModelConfig(directory)
    family = FAMILIES[config.model_type]
    runtime = Runtime(options)
    image_card, text_card = description.card.towers

    def load_towers() -> Any:
        import torch
        import transformers

        # The load may happen in the middle of a batch, inside inference mode.
        with torch.inference_mode(False):
            return runtime.place(load_model(getattr(transformers, family.model), directory))

    model, tokenizer = Deferred(load_towers), Deferred(lambda: load_tokenizer(directory))
    if not runtime.keeps(image_card, text_card):
        model.now()
        tokenizer.now()
    transform = description.image_transform
    assert transform is not None
    image_dim, text_dim = _dims(config)
    image = ImageTower(
        transform=transform,
        forward=_image_forward(model, transform, runtime),
        dim=image_dim,
        runtime=runtime,
        card=image_card,
    )
    text = TextTower(
        tokenizer=tokenizer,
        forward=_text_forward(model, family),
        max_tokens=max_tokens_of(config),
        pad_to_max=family.pad_to_max,
        dim=text_dim,
        runtime=runtime,
        policy=options.text_policy,
        card=text_card,
    )
    return TowersEncoder(description.card, image=image, text=text)


def _dims(config: ModelConfig) -> tuple[int, int]:
    """(dimension of image vectors, dimension of text vectors)."""
    if config.model_type not in ("siglip", "siglip2"):
        projection = int(config.get("projection_dim"))
        return projection, projection
    text = config.get("projection_size", "text_config") or config.get("hidden_size", "text_config")
    return int(config.get("hidden_size", "vision_config")), int(text)


def max_tokens_of(config: ModelConfig) -> int:
    """The longest input of the text tower in tokens, special tokens included."""
    family = FAMILIES[config.model_type]
    positions = int(config.get("max_position_embeddings", "text_config"))
    return min(positions, family.context) if family.context else positions


def _image_forward(model: Any, transform: ImageTransform, runtime: Runtime) -> Callable[..., torch.Tensor]:
    if transform.kind != "patches":
        return lambda pixel_values: model.get_image_features(pixel_values=pixel_values).pooler_output

    def forward(pixels: Sequence[Any]) -> torch.Tensor:
        values, mask, shapes = patchify(pixels, transform)
        inputs = {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": shapes}
        tensors = {name: runtime.tensor(array) for name, array in inputs.items()}
        return model.get_image_features(**tensors).pooler_output

    return forward


def _text_forward(model: Any, family: TwoTowerFamily) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {"input_ids": batch["input_ids"]}
        if family.masked:
            inputs["attention_mask"] = batch["attention_mask"]
        return model.get_text_features(**inputs).pooler_output

    return forward


def patchify(
    pixels: Sequence[np.ndarray[Any, Any]], transform: ImageTransform
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Turn pictures of different sizes into sequences of patches (NaFlex, SigLIP 2).

    Args:
        pixels: n pictures uint8 (height, width, 3) whose sides are multiples of the patch size.
        transform: a transform of kind `patches`.

    Returns:
        Patches float32 (n, max patches, patch² · 3), mask int32 (n, max patches), and int64 (n, 2): patches per side
        (high, wide).
    """
    side, most = transform.patch_size, transform.max_patches
    values = np.zeros((len(pixels), most, side * side * 3), np.float32)
    mask = np.zeros((len(pixels), most), np.int32)
    shapes = np.zeros((len(pixels), 2), np.int64)
    for i, picture in enumerate(pixels):
        scaled = transform.normalise([picture])[0].transpose(1, 2, 0)
        high, wide = scaled.shape[0] // side, scaled.shape[1] // side
        patches = scaled.reshape(high, side, wide, side, 3).transpose(0, 2, 1, 3, 4).reshape(high * wide, -1)
        values[i, : high * wide], mask[i, : high * wide], shapes[i] = patches, 1, (high, wide)
    return values, mask, shapes
