"""Single towers of transformers: any text model with its pooling, any vision model with its own.

Text: mean over the tokens unless a sentence-transformers directory says otherwise (`1_Pooling/config.json`).
Vision: the pooled map of a convolutional model, the class token of a transformer. A transformer's `pooler` is left
alone: it is trained for one head, and in many checkpoints not trained at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from encoders.digest import digest_json
from encoders.directories import load_config, load_tokenizer, tokenizer_digest, weights_digest
from encoders.images.transform import load_transform
from encoders.protocol import Encoder, EncoderCard, EncoderOptions, TowerCard
from encoders.registry import Description

if TYPE_CHECKING:
    import torch

Pooling = Literal["mean", "cls", "max"]
_NO_CLASS_TOKEN = ("swin", "swinv2", "cvt", "focalnet")
_UNBOUNDED = 1 << 20


def describe(spec: str) -> Description:
    """The card of a directory with one tower."""
    return describe_directory(Path(spec))


def describe_directory(directory: Path, *, name: str | None = None, spec: str | None = None) -> Description:
    """The card of a directory with one tower, under a name of its own where it has one."""
    config = load_config(directory)
    weights = weights_digest(directory)
    transform = load_transform(directory) if is_vision(config) else None
    if transform is not None:
        tower = TowerCard(
            modality="image",
            dim=vision_dim(config),
            space=digest_json(["image", weights]),
            weights=weights,
            tokenizer=None,
            preprocessing=transform.digest,
        )
    else:
        settings = [pooling_of(directory), max_tokens_of(directory, config)]
        tower = TowerCard(
            modality="text",
            dim=int(config.hidden_size),
            space=digest_json(["text", weights, settings]),
            weights=weights,
            tokenizer=tokenizer_digest(directory),
            preprocessing=digest_json(settings),
        )
    card = EncoderCard(
        name=name or f"{config.model_type}:{directory.name}", spec=spec or str(directory.resolve()), towers=(tower,)
    )
    return Description(card=card, image_transform=transform)


def load(spec: str, options: EncoderOptions) -> Encoder:
    """The encoder of a directory with one tower."""
    return load_directory(Path(spec), describe(spec), options)


def load_directory(directory: Path, description: Description, options: EncoderOptions) -> Encoder:
    """The encoder of a directory whose card is known."""
    from transformers import AutoModel

    from encoders.device import Runtime
    from encoders.text import TextTower
    from encoders.towers import ImageTower, TowersEncoder

    config = load_config(directory)
    runtime = Runtime(options)
    model = AutoModel.from_pretrained(directory, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    model = runtime.place(model)
    tower = description.card.towers[0]
    if description.image_transform is not None:
        image = ImageTower(
            transform=description.image_transform,
            forward=vision_features(model, config.model_type),
            dim=tower.dim,
            runtime=runtime,
        )
        return TowersEncoder(description.card, image=image)
    text = TextTower(
        tokenizer=load_tokenizer(directory),
        forward=text_features(model, pooling_of(directory)),
        max_tokens=max_tokens_of(directory, config),
        pad_to_max=False,
        dim=tower.dim,
        runtime=runtime,
        policy=options.text_policy,
    )
    return TowersEncoder(description.card, text=text)


def is_vision(config: Any) -> bool:
    """Whether a configuration is of a vision model."""
    return hasattr(config, "num_channels") or hasattr(config, "image_size")


def vision_dim(config: Any) -> int:
    """Length of a vision model's features."""
    sizes = getattr(config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else config.hidden_size)


def vision_features(model: Any, model_type: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pixels (n, 3, height, width) → features (n, dim), pooled as the model type wants."""

    def forward(pixel_values: torch.Tensor) -> torch.Tensor:
        output = model(pixel_values=pixel_values)
        hidden = output.last_hidden_state
        if hidden.dim() == 4:
            pooled = output.pooler_output if output.pooler_output is not None else hidden.mean(dim=(2, 3))
            return pooled.flatten(1)  # type: ignore[no-any-return]
        return hidden.mean(dim=1) if model_type in _NO_CLASS_TOKEN else hidden[:, 0]  # type: ignore[no-any-return]

    return forward


def text_features(model: Any, pooling: Pooling) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """Token batch → features (n, dim), pooled over the tokens that are not padding."""

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        mask = batch["attention_mask"]
        hidden = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        return pool_tokens(hidden, mask, pooling)

    return forward


def pool_tokens(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(n, tokens, dim) → (n, dim)."""
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    if pooling == "max":
        return hidden.masked_fill(weights == 0, float("-inf")).amax(dim=1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def pooling_of(directory: Path) -> Pooling:
    """The pooling that a sentence-transformers directory names, else the mean."""
    path = directory / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    config = json.loads(path.read_text())
    if config.get("pooling_mode_cls_token") or config.get("pooling_mode") == "cls":
        return "cls"
    return "max" if config.get("pooling_mode_max_tokens") or config.get("pooling_mode") == "max" else "mean"


def max_tokens_of(directory: Path, config: Any) -> int:
    """The longest input: what sentence-transformers, the tokenizer and the position table allow."""
    limits = [int(getattr(config, "max_position_embeddings", None) or _UNBOUNDED)]
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        limits[0] -= 2  # their position table begins after the padding index
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        path = directory / name
        value = json.loads(path.read_text()).get(key) if path.is_file() else None
        if isinstance(value, int):
            limits.append(value)
    return min(limits)
