"""An encoder described: what a job's driver needs to know before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from encoders.images.transform import ImageTransform
from encoders.protocol import EncoderCard


@dataclass(frozen=True, kw_only=True)
class Description:
    """An encoder as data: what it is, and what its image tower wants to see (None without one)."""

    card: EncoderCard
    image_transform: ImageTransform | None
