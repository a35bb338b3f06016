"""A cross-encoder from a model directory: pairs of pictures and captions in, a number a pair out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from encoders.cross.families import FAMILIES, CrossFamily
from encoders.digest import digest_files, digest_json
from encoders.families.directories import ModelConfig, identity, model_digest, tokenizer_digest
from encoders.protocol import EncoderOptions
from encoders.registry import model_directory

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# Tokenizers that were saved without a length name one beyond reason.
_UNBOUNDED = 100_000


class CrossEncoder:
    """A model that reads a picture and a caption together.

    Attributes:
        name: a short name.
        spec: what finds it again.
        fingerprint: digest of its files; it changes whenever its scores can change, 16 hex digits.
        model: the model of transformers.
    """

    def __init__(self, directory: Path, options: EncoderOptions) -> None:
        """Load it; see `load`."""
        import transformers

        from encoders.families.loading import load_model, load_tokenizer
        from encoders.runtime.device import Runtime

        config, self._family = _recognise(directory)
        short, self.spec = identity(directory)
        self.name = f"{config.model_type}:{short}"
        self.fingerprint = _fingerprint(directory, config)
        self._runtime = Runtime(options)
        self.model: Any = self._runtime.place(load_model(getattr(transformers, self._family.model), directory))
        self._tokenizer = load_tokenizer(directory)
        self._processor = getattr(transformers, self._family.processor).from_pretrained(directory)
        self._max_tokens = _max_tokens(config, self._tokenizer)

    def score(self, pictures: Sequence[Image], texts: Sequence[str]) -> NDArray[np.float32]:
        """How well each picture matches the caption at its place, float32 (n,): a logit, the greater the better.

        Args:
            pictures: n, RGB; the same object several times is prepared once.
            texts: n captions; those too long are cut.
        """
        pairs = list(zip(pictures, texts, strict=True))
        if not pairs:
            return np.zeros(0, np.float32)
        return self._runtime.run_plain(lambda part: self.match(*zip(*part, strict=True)), pairs)

    def match(self, pictures: Sequence[Image], texts: Sequence[str]) -> torch.Tensor:
        """The logits (n,) of one batch, with gradients where they are on."""
        import torch

        distinct = {id(picture): picture for picture in pictures}
        places = {identity: place for place, identity in enumerate(distinct)}
        which = torch.tensor([places[id(picture)] for picture in pictures])
        seen = self._processor(images=list(distinct.values()), return_tensors="pt")
        read = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        )
        tokens = {name: self._runtime.tensor(read[name]) for name in ("input_ids", "attention_mask")}
        images = {name: self._runtime.tensor(tensor) for name, tensor in seen.items()}
        return self._family.match(self.model, images, self._runtime.tensor(which), tokens)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which it computes."""
        return self._runtime.autocast()

    def save(self, directory: Path) -> None:
        """Write the model, its tokenizer and its processor into a directory that is there."""
        for part in (self.model, self._tokenizer, self._processor):
            part.save_pretrained(directory)


def load(spec: str, options: EncoderOptions | None = None) -> CrossEncoder:
    """A cross-encoder, ready to run.

    Args:
        spec: a model directory, or a hub id.
        options: how it runs; the policy for captions and the preprocessing do not matter here.

    Raises:
        ValueError: no such model, or one of another kind, or its weights are incomplete.
        FileNotFoundError: it has no tokenizer.
    """
    return CrossEncoder(model_directory(spec), options or EncoderOptions(batch_size=16))


def _recognise(directory: Path) -> tuple[ModelConfig, CrossFamily]:
    config = ModelConfig(directory)
    family = FAMILIES.get(config.model_type)
    wanted = ", ".join(sorted(other.model for other in FAMILIES.values()))
    if family is None:
        raise ValueError(
            f"cross-encoder {directory}: model type {config.model_type!r} is none; it takes one of {wanted}"
        )
    saved_as = config.raw.get("architectures") or [family.model]
    if family.model not in saved_as:
        # Its weights lack the head, which would be made up at random.
        raise ValueError(
            f"cross-encoder {directory}: holds {', '.join(saved_as)}, which has no head that matches; it takes {wanted}"
        )
    return config, family


def _fingerprint(directory: Path, config: ModelConfig) -> str:
    files = [directory / name for name in _PROCESSOR_FILES if (directory / name).is_file()]
    if not files:
        raise FileNotFoundError(f"cross-encoder {directory}: holds no preprocessor_config.json")
    return digest_json([model_digest(directory, config.raw), tokenizer_digest(directory), digest_files(files)])


def _max_tokens(config: ModelConfig, tokenizer: Any) -> int:
    """The longest caption that the model reads, special tokens included."""
    section = "text_config" if "text_config" in config.raw else None
    positions = int(config.get("max_position_embeddings", section))
    # RoBERTa's positions count from behind its padding token.
    positions -= 2 if config.model_type == "bridgetower" else 0
    said = int(tokenizer.model_max_length)
    return min(positions, said) if said < _UNBOUNDED else positions
