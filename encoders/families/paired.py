"""`IMAGE+TEXT`: the image tower of one encoder and the text tower of another, in two unrelated spaces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from encoders.description import Description
from encoders.protocol import Encoder, EncoderCard, Modality, TextVectors, TowerCard


def describe_pair(image: Description, text: Description) -> Description:
    """The card of the pair.

    Raises:
        ValueError: the first encoder has no image tower, or the second has no text tower.
    """
    return Description(card=_card(image.card, text.card), image_transform=image.image_transform)


def _card(image: EncoderCard, text: EncoderCard) -> EncoderCard:
    towers = (_tower(image, "image"), _tower(text, "text"))
    name = f"{image.name}+{text.name}"
    return EncoderCard(name=name, spec=f"{image.spec}+{text.spec}", towers=towers)


def _tower(card: EncoderCard, modality: Modality) -> TowerCard:
    tower = card.tower(modality)
    if tower is None:
        raise ValueError(f"encoder {card.name!r}: has no {modality} tower; it reads {', '.join(card.modalities)}")
    return tower


class PairedEncoder:
    """Two encoders behind one card."""

    def __init__(self, image: Encoder, text: Encoder) -> None:
        self._image = image
        self._text = text
        self._card = _card(image.card, text.card)

    @property
    def card(self) -> EncoderCard:
        """The pair's name, spec and towers."""
        return self._card

    def encode_images(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Vectors (n, image dim) of n pictures uint8 (height, width, 3)."""
        return self._image.encode_images(pixels)

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Vectors (n, text dim) of n captions."""
        return self._text.encode_texts(texts)
