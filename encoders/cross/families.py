"""What the families of cross-encoders in transformers call things, and how each one's match is read.

ViLT (arXiv:2102.03334), BLIP's image-text matching (2201.12086), BridgeTower (2206.08657); all descend from ViLBERT
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
    """What tells one family from another.

    Attributes:
        model: name of its class in transformers.
        processor: name of its image processor's, the one that needs Pillow alone.
        match: the model, its picture tensors (a row a distinct picture), which row of them each pair takes (n,), and
            its token tensors (n, length) → logits (n,), greater where a pair matches better.
    """

    model: str
    processor: str
    match: Callable[[Any, dict[str, torch.Tensor], torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]


def _by_blip(
    model: Any, pictures: dict[str, torch.Tensor], which: torch.Tensor, tokens: dict[str, torch.Tensor]
) -> torch.Tensor:
    """As the model's own forward; but a picture of several pairs goes through the vision tower once."""
    import torch

    seen = model.vision_model(pixel_values=pictures["pixel_values"]).last_hidden_state[which]
    # The model's own forward makes this mask on the CPU, wherever the model is.
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
    """Of two classes, no match and match, the log of the odds: (n, 2) → (n,)."""
    return logits[:, 1] - logits[:, 0]


FAMILIES: dict[str, CrossFamily] = {
    "blip": CrossFamily(model="BlipForImageTextRetrieval", processor="BlipImageProcessorPil", match=_by_blip),
    "vilt": CrossFamily(model="ViltForImageAndTextRetrieval", processor="ViltImageProcessorPil", match=_by_vilt),
    "bridgetower": CrossFamily(
        model="BridgeTowerForImageAndTextRetrieval", processor="BridgeTowerImageProcessorPil", match=_by_bridgetower
    ),
}
