"""Directories with one tower: any text model or vision model of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.description import Description
from encoders.digest import digest_json
from encoders.families.directories import ModelConfig, identity, model_digest, tokenizer_digest
from encoders.families.pooling import Pooling, pool_tokens, pooling_of
from encoders.images.transform import load_transform
from encoders.protocol import Encoder, EncoderCard, EncoderOptions, TowerCard

if TYPE_CHECKING:
    import torch

NEEDS, MODEL_NEEDS = ("encoders.runtime.text", "encoders.runtime.towers"), ("transformers.modeling_utils",)
# Model types without a class token: their first token is an ordinary patch.
_NO_CLASS_TOKEN = ("swin", "swinv2", "cvt", "focalnet", "ijepa", "hiera")
# Their pooler is an attention head that was trained with the tower; its output is the picture's vector.
_ATTENTION_POOLED = ("siglip_vision_model", "siglip2_vision_model", "aimv2_vision_model")
# Model types that mask patches at random, in inference too.
_RANDOM = ("vit_mae",)
_VISION_KEYS = {"num_channels", "image_size", "patch_size"}
_PADDED_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")
_UNBOUNDED = 1 << 20


def describe(spec: str) -> Description:
    """The card of a directory with one tower."""
    return describe_directory(Path(spec))


def describe_directory(directory: Path, *, name: str | None = None, spec: str | None = None) -> Description:
    """The card of a directory with one tower; `name` and `spec` replace those derived from the directory."""
    config = ModelConfig(directory)
    weights = model_digest(directory, config.raw)
    transform = load_transform(directory) if is_vision(config) else None
    tower = _image_card(config, weights, transform.digest) if transform else _text_card(config, weights)
    short, found_again = identity(directory)
    card = EncoderCard(name=name or f"{config.model_type}:{short}", spec=spec or found_again, towers=(tower,))
    return Description(card=card, image_transform=transform)


def load(spec: str, options: EncoderOptions) -> Encoder:
    """The encoder of a directory with one tower."""
    return load_directory(Path(spec), describe(spec), options)


def load_directory(directory: Path, description: Description, options: EncoderOptions) -> Encoder:
    """The encoder of a directory whose description is known.

    Raises:
        ValueError: weights are missing, or the options do not fit this machine.
    """
    from encoders.families.loading import load_model, load_tokenizer
    from encoders.runtime.deferred import Deferred
    from encoders.runtime.device import Runtime
    from encoders.runtime.text import TextTower
    from encoders.runtime.towers import ImageTower, TowersEncoder

    config = ModelConfig(directory)
    runtime = Runtime(options)

    def load_tower() -> Any:
        import torch
        from transformers import AutoModel

        # The load may happen in the middle of a batch, inside inference mode.
        with torch.inference_mode(False):
            return runtime.place(load_model(AutoModel, directory))

    (card,) = description.card.towers
    model, tokenizer = Deferred(load_tower), Deferred(lambda: load_tokenizer(directory))
    kept = runtime.keeps(card)
    if not kept:
        model.now()
    dim, transform = card.dim, description.image_transform
    if transform is not None:
        forward = vision_features(model, config.model_type)
        image = ImageTower(transform=transform, forward=forward, dim=dim, runtime=runtime, card=card)
        return TowersEncoder(description.card, image=image)
    if not kept:
        tokenizer.now()
    text = TextTower(
        tokenizer=tokenizer,
        forward=text_features(model, pooling_of(directory)),
        max_tokens=max_tokens_of(config),
        pad_to_max=False,
        dim=dim,
        runtime=runtime,
        policy=options.text_policy,
        card=card,
    )
    return TowersEncoder(description.card, text=text)


def is_vision(config: ModelConfig) -> bool:
    """Whether a configuration describes a vision model.

    Raises:
        ValueError: the vision model gives vectors that are not deterministic.
    """
    if config.model_type in _RANDOM:
        raise ValueError(f"encoder {config.directory}: {config.model_type} masks patches at random; use another tower")
    if _VISION_KEYS & set(config.raw):
        return True
    return "vocab_size" not in config.raw and any(config.get(key) is not None for key in sorted(_VISION_KEYS))


def vision_dim(config: ModelConfig) -> int:
    """Dimension of a vision model's features."""
    sizes = config.raw.get("hidden_sizes") or config.raw.get("hidden_size") or config.get("hidden_sizes")
    sizes = sizes or config.get("hidden_size")
    return int(sizes[-1] if isinstance(sizes, (list, tuple)) else sizes)


def vision_features(model: Any, model_type: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function pixels (n, 3, height, width) → features (n, dim), with the pooling of the model type."""

    def forward(pixel_values: torch.Tensor) -> torch.Tensor:
        output = model(pixel_values=pixel_values)
        hidden: torch.Tensor = output.last_hidden_state
        pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
        if model_type in _ATTENTION_POOLED and pooled is not None:
            return pooled
        if hidden.dim() == 4:
            return (hidden.mean(dim=(2, 3)) if pooled is None else pooled).flatten(1)
        return hidden.mean(dim=1) if model_type in _NO_CLASS_TOKEN else hidden[:, 0]

    return forward


def text_features(model: Any, pooling: Pooling) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """A function token batch → features (n, dim), pooled over the tokens that are not padding."""

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        mask = batch["attention_mask"]
        hidden = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        return pool_tokens(hidden, mask, pooling)

    return forward


def max_tokens_of(config: ModelConfig) -> int:
    """The longest input in tokens: the least of the limits of sentence-transformers, tokenizer and position table."""
    limits = [int(config.get("max_position_embeddings") or _UNBOUNDED)]
    if config.model_type in _PADDED_POSITIONS:
        limits[0] -= 2  # their position table begins after the padding index
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        path = config.directory / name
        value = json.loads(path.read_text(encoding="utf-8")).get(key) if path.is_file() else None
        if isinstance(value, int):
            limits.append(value)
    return min(limits)


def _image_card(config: ModelConfig, weights: str, preprocessing: str) -> TowerCard:
    return TowerCard(
        modality="image",
        dim=vision_dim(config),
        space=digest_json(["image", weights]),
        weights=weights,
        tokenizer=None,
        preprocessing=preprocessing,
    )


def _text_card(config: ModelConfig, weights: str) -> TowerCard:
    settings = [pooling_of(config.directory), max_tokens_of(config)]
    return TowerCard(
        modality="text",
        dim=int(config.get("hidden_size")),
        space=digest_json(["text", weights, settings]),
        weights=weights,
        tokenizer=tokenizer_digest(config.directory),
        preprocessing=digest_json(settings),
    )
