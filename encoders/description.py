"""The description of an encoder: what the driver of a run needs to know before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from encoders.images.transform import ImageTransform
from encoders.protocol import EncoderCard


@dataclass(frozen=True, kw_only=True)
class Description:
    """An encoder's card, and the transform of its image tower (None if it has no image tower)."""

    card: EncoderCard
    image_transform: ImageTransform | None
