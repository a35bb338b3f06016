"""An encoder made of towers: what every torch encoder of isthmus is at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.device import Runtime
from encoders.images.transform import ImageTransform
from encoders.protocol import EncoderCard, TextVectors
from encoders.text import TextTower

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ImageTower:
    """An image tower that is ready to run.

    Attributes:
        transform: how its input is normalised.
        forward: batch of float32 (n, 3, height, width) → features (n, dim), not normalised. For `patches`
            transforms it gets the uint8 pictures themselves, because these differ in size.
        dim: length of its vectors.
        runtime: where it runs.
    """

    transform: ImageTransform
    forward: Callable[..., torch.Tensor]
    dim: int
    runtime: Runtime

    def encode(self, pixels: Sequence[Pixels]) -> NDArray[np.float32]:
        """Vectors (n, dim) of n pictures uint8 (height, width, 3), L2-normalised."""
        if not pixels:
            return np.zeros((0, self.dim), np.float32)
        if self.transform.kind == "patches":
            return self.runtime.run(self.forward, list(pixels))
        vectors = np.empty((len(pixels), self.dim), np.float32)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, picture in enumerate(pixels):
            by_shape.setdefault(picture.shape, []).append(i)
        for places in by_shape.values():
            vectors[places] = self.runtime.run(self._features, [pixels[i] for i in places])
        return vectors

    def _features(self, pixels: Sequence[Pixels]) -> torch.Tensor:
        return self.forward(self.runtime.tensor(self.transform.normalise(pixels)))


class TowersEncoder:
    """An encoder with an image tower, a text tower, or both."""

    def __init__(self, card: EncoderCard, *, image: ImageTower | None = None, text: TextTower | None = None) -> None:
        self._card = card
        self._image = image
        self._text = text

    @property
    def card(self) -> EncoderCard:
        """What this encoder is."""
        return self._card

    def encode_images(self, pixels: Sequence[Pixels]) -> NDArray[np.float32]:
        """Vectors (n, dim) of n pictures.

        Raises:
            ValueError: the encoder has no image tower.
        """
        if self._image is None:
            raise ValueError(f"encoder {self._card.name!r} has no image tower")
        return self._image.encode(pixels)

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Vectors (n, dim) of n captions.

        Raises:
            ValueError: the encoder has no text tower.
        """
        if self._text is None:
            raise ValueError(f"encoder {self._card.name!r} has no text tower")
        return self._text.encode(texts)
