"""The error for pictures that cannot be used, with its reason codes."""

from __future__ import annotations

from typing import Literal

ImageReason = Literal[
    "empty_image",
    "not_an_image",
    "truncated_image",
    "corrupt_image",
    "too_many_pixels",
    "timeout",
    "decoder_crashed",
]


class ImageError(ValueError):
    """A picture that cannot be decoded; `reason` holds the reason code."""

    def __init__(self, reason: ImageReason, message: str) -> None:
        super().__init__(message)
        self.reason: ImageReason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.reason, str(self))
