"""Names of models and sizes, and the words under which one part finds another's figures. Imports nothing heavy."""

from __future__ import annotations

RESNET, VIT_B, VIT_L, BERT = "ResNet-50", "ViT-B/32", "ViT-L/14", "BERT-base"
IMAGE_MODELS = (RESNET, VIT_B, VIT_L)
SMALL, LARGE = "640x480", "12 MP"


def best_rate(model: str) -> str:
    """The encode call at its best batch size."""
    return f"{model}: encode call, best batch size"


def per_core(size: str) -> str:
    """What a core decodes."""
    return f"decoding, {size}: a core"


def together(size: str) -> str:
    """Decoding on all cores and encoding at once."""
    return f"{VIT_B}, {size}: decoding on all cores and encoding, together"
