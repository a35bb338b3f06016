"""An encoder made of towers: what every torch encoder of isthmus is at run time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.images.transform import ImageTransform
from encoders.protocol import EncoderCard, TextVectors, TowerCard
from encoders.runtime.acceleration import Tensors, is_settled
from encoders.runtime.device import Runtime
from encoders.runtime.text import TextTower

log = logging.getLogger(__name__)
Pixels = NDArray[np.uint8]
_SAMPLE_PICTURES = 8


@dataclass(kw_only=True)
class ImageTower:
    """An image tower that is ready to run.

    Attributes:
        transform: how its input is normalised.
        forward: batch of float32 (n, 3, height, width) → features (n, dim), not normalised. For `patches`
            transforms it gets the uint8 pictures themselves, because these differ in size.
        dim: length of its vectors.
        runtime: where it runs.
        card: of the tower, by which its OpenVINO graph is kept; None keeps none.
    """

    transform: ImageTransform
    forward: InitVar[Callable[..., torch.Tensor]]
    dim: int
    runtime: Runtime
    card: TowerCard | None = None
    _chosen: Callable[..., torch.Tensor] = field(init=False, repr=False)

    def __post_init__(self, forward: Callable[..., torch.Tensor]) -> None:
        """Keep only what is needed, so that a tower that went over to OpenVINO lets its torch weights go."""
        self._chosen = _chosen(self.transform, forward, self.runtime, self.card)

    def settle(self) -> None:
        """Encode noise, where OpenVINO was asked for: it is then found out now whether it takes this tower."""
        if not self.runtime.settles_at_once or is_settled(self._chosen):
            return
        if self.transform.fixed_size is None:
            log.warning("pictures of varying size are for torch: OpenVINO does not compute this image tower")
            return
        shape = (_SAMPLE_PICTURES, *self.transform.fixed_size, 3)
        self.encode(list(np.random.default_rng(0).integers(0, 256, shape, np.uint8)))

    def encode(self, pixels: Sequence[Pixels]) -> NDArray[np.float32]:
        """Vectors (n, dim) of n pictures uint8 (height, width, 3), L2-normalised."""
        if not pixels:
            return np.zeros((0, self.dim), np.float32)
        if self.transform.kind == "patches":
            return self.runtime.run(self._features, list(pixels))
        vectors = np.empty((len(pixels), self.dim), np.float32)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, picture in enumerate(pixels):
            by_shape.setdefault(picture.shape, []).append(i)
        for places in by_shape.values():
            vectors[places] = self.runtime.run(self._features, [pixels[i] for i in places])
        return vectors

    def _features(self, pixels: Sequence[Pixels]) -> torch.Tensor:
        if self.transform.kind == "patches":
            return self._chosen(pixels)
        return self._chosen({"pixels": torch.from_numpy(np.stack(pixels))})


def _chosen(
    transform: ImageTransform, forward: Callable[..., torch.Tensor], runtime: Runtime, card: TowerCard | None
) -> Callable[..., torch.Tensor]:
    """Pictures → features, by torch, or by OpenVINO, whose graph also does the normalising."""
    if transform.kind == "patches":
        return forward

    def traced(inputs: Tensors) -> torch.Tensor:
        return forward(transform.normalise_tensor(inputs["pixels"]))

    def by_torch(inputs: Tensors) -> torch.Tensor:
        # Copied as uint8, a quarter of the bytes, and made float32 where the model is.
        return traced({"pixels": runtime.tensor(inputs["pixels"])})

    return runtime.fastest(by_torch, traced, tower=card) if transform.fixed_size else by_torch


class TowersEncoder:
    """An encoder with an image tower, a text tower, or both."""

    def __init__(self, card: EncoderCard, *, image: ImageTower | None = None, text: TextTower | None = None) -> None:
        self._card = card
        self._image = image
        self._text = text
        for tower in (image, text):
            if tower is not None:
                tower.settle()

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
