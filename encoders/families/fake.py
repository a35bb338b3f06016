"""A deterministic encoder without weights, for examples and tests: its vectors depend on the pixels and the words.

Words that name a colour pull a caption towards pictures of that colour, so that a text query finds some pictures.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from encoders.description import Description
from encoders.digest import digest_json
from encoders.images.transform import ImageTransform
from encoders.protocol import EncoderCard, EncoderOptions, TextVectors, TowerCard

_DEFAULT_DIM = 64
_MAX_WORDS = 64
_CHUNK = 4096
_WORD = re.compile(r"\w+")
_GRID = 4
_TRANSFORM = ImageTransform(kind="resize", size=(32, 32), resample="bilinear")
_COLOURS = {
    **dict.fromkeys(("red", "红色"), (1, -1, -1)),
    **dict.fromkeys(("green", "绿色"), (-1, 1, -1)),
    **dict.fromkeys(("blue", "蓝色"), (-1, -1, 1)),
    **dict.fromkeys(("yellow", "黄色"), (1, 1, -1)),
}
_COLOUR_WEIGHT = 2.0


def describe(spec: str) -> Description:
    """The card of `fake` (64 dimensions) or `fake-N` (N dimensions)."""
    return Description(card=_card(spec), image_transform=_TRANSFORM)


def load(spec: str, options: EncoderOptions) -> FakeEncoder:
    """The encoder `fake` or `fake-N`."""
    return FakeEncoder(_card(spec), options)


def _card(spec: str) -> EncoderCard:
    dim = int(spec.partition("-")[2] or _DEFAULT_DIM)
    if dim < 8:
        raise ValueError(f"encoder {spec!r}: has {dim} dimensions; give at least 8")
    weights = digest_json(["fake", 2, dim])
    image = TowerCard(
        modality="image", dim=dim, space=weights, weights=weights, tokenizer=None, preprocessing=_TRANSFORM.digest
    )
    text = TowerCard(
        modality="text", dim=dim, space=weights, weights=weights, tokenizer="words", preprocessing="sum-of-words"
    )
    return EncoderCard(name=spec, spec=spec, towers=(image, text))


class FakeEncoder:
    """The encoder; see the module's docstring."""

    def __init__(self, card: EncoderCard, options: EncoderOptions) -> None:
        self._card = card
        self._policy = options.text_policy
        self._dim = card.towers[0].dim
        cells = _GRID * _GRID * 3
        self._projection = np.random.default_rng(0).standard_normal((cells, self._dim)).astype(np.float32)

    @property
    def card(self) -> EncoderCard:
        """The encoder's name, spec and towers."""
        return self._card

    def encode_images(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Vectors (n, dim): the mean colours of a 4 x 4 grid, projected. `pixels`: n pictures uint8 (32, 32, 3)."""
        if not pixels:
            return np.zeros((0, self._dim), np.float32)
        batch = np.stack(pixels).astype(np.float32) / 127.5 - 1.0
        n, height, width, _ = batch.shape
        grid = batch.reshape(n, _GRID, height // _GRID, _GRID, width // _GRID, 3).mean(axis=(2, 4))
        # Not `@`: on some processors, BLAS rounds a row differently in batches of another size.
        vectors = np.einsum("nc,cd->nd", grid.reshape(n, -1), self._projection)
        vectors[:, 0] += 1e-3  # otherwise the vector of a grey picture would be zero
        return _unit(vectors)

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Vectors (n, dim): the sum of the words' directions; overlong captions as the text policy demands."""
        words = [_WORD.findall(text.lower()) for text in texts]
        overlong = np.array([len(found) > _MAX_WORDS for found in words], np.bool_)
        if self._policy != "window":
            words = [found[:_MAX_WORDS] for found in words]
        vectors = np.zeros((len(texts), self._dim), np.float32)
        for start in range(0, len(words), _CHUNK):
            vectors[start : start + _CHUNK] = self._sums(words[start : start + _CHUNK])
        vectors[:, 0] += 1e-3  # otherwise the vector of a text without words would be zero
        vectors = _unit(vectors)
        rejected = overlong if self._policy == "reject" else np.zeros(len(texts), np.bool_)
        vectors[rejected] = 0.0
        return TextVectors(vectors=vectors, overlong=overlong, rejected=rejected)

    def _sums(self, words: list[list[str]]) -> NDArray[np.float32]:
        """The sums (n, dim) of each text's words; each distinct word is computed once."""
        places: dict[str, int] = {}
        flat = [places.setdefault(word, len(places)) for found in words for word in found]
        sums = np.zeros((len(words), self._dim), np.float32)
        lengths = np.array([len(found) for found in words])
        if flat:
            table = np.stack([self._word(word) for word in places])
            starts = np.cumsum(lengths) - lengths
            sums[lengths > 0] = np.add.reduceat(table[flat], starts[lengths > 0])
        return sums

    def _word(self, word: str) -> NDArray[np.float32]:
        direction = _direction(word, self._dim)
        if word in _COLOURS:
            colour = np.tile(np.array(_COLOURS[word], np.float32), _GRID * _GRID) @ self._projection
            return direction + _COLOUR_WEIGHT * np.sqrt(self._dim) * colour / np.linalg.norm(colour)
        return direction


def _direction(word: str, dim: int) -> NDArray[np.float32]:
    """A word's direction (dim,), with entries of unit variance: a hash extended to `dim` bytes."""
    stretched = hashlib.shake_128(word.encode("utf-8", "surrogatepass")).digest(dim)
    return (np.frombuffer(stretched, np.uint8).astype(np.float32) - 127.5) / np.float32(73.9)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
