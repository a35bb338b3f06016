"""The families of cross-encoders in transformers: their class names, and how to read the match from their output.

ViLT (arXiv:2102.03334), BLIP's image-text matching (2201.12086), BridgeTower (2206.08657). All descend from ViLBERT
(1908.02265).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class CrossFamily:
    """What distinguishes one family of cross-encoders.

    Attributes:
        model: name of the model class in transformers.
        processor: name of the image processor class in transformers; the variant that needs only Pillow.
        match: (model, picture tensors with one row per distinct picture, row (n,) of each pair's picture, token tensors
            (n, length)) → logits (n,); a greater logit means a better match.
    """

    model: str
    processor: str
    match: Callable[[Any, dict[str, torch.Tensor], torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]


def _by_blip(
    model: Any, pictures: dict[str, torch.Tensor], which: torch.Tensor, tokens: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The same computation as the model's forward, but a picture in several pairs passes the vision tower once."""
    import torch

    seen = model.vision_model(pixel_values=pictures["pixel_values"]).last_hidden_state[which]
    # The model's own forward creates this mask on the CPU, whatever the model's device.
    everywhere = torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device)
    read = model.text_encoder(**tokens, encoder_hidden_states=seen, encoder_attention_mask=everywhere)
    return _yes_over_no(model.itm_head(read.last_hidden_state[:, 0]))


def _by_vilt(
    model: Any, pictures: dict[str, torch.Tensor], which: torch.Tensor, tokens: dict[str, torch.Tensor]
) -> torch.Tensor:
    return model(**tokens, **{name: tensor[which] for name, tensor in pictures.items()}).logits[:, 0]


def _by_bridgetower(
    model: Any, pictures: dict[str, torch.Tensor], which: torch.Tensor, tokens: dict[str, torch.Tensor]
) -> torch.Tensor:
    return _yes_over_no(model(**tokens, **{name: tensor[which] for name, tensor in pictures.items()}).logits)


def _yes_over_no(logits: torch.Tensor) -> torch.Tensor:
    """Log odds of the two classes no match and match: (n, 2) → (n,)."""
    return logits[:, 1] - logits[:, 0]


FAMILIES: dict[str, CrossFamily] = {
    "blip": CrossFamily(model="BlipForImageTextRetrieval", processor="BlipImageProcessorPil", match=_by_blip),
    "vilt": CrossFamily(model="ViltForImageAndTextRetrieval", processor="ViltImageProcessorPil", match=_by_vilt),
    "bridgetower": CrossFamily(
        model="BridgeTowerForImageAndTextRetrieval", processor="BridgeTowerImageProcessorPil", match=_by_bridgetower
    ),
}
