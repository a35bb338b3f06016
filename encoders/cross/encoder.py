"""A cross-encoder from a model directory: pairs of pictures and captions in, one score per pair out."""

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
# Tokenizers saved without a length report a huge number instead (transformers' VERY_LARGE_INTEGER).
_UNBOUNDED = 100_000


class CrossEncoder:
    """A model that reads a picture and a caption together.

    Attributes:
        name: model type and directory name, such as `blip:my-model`.
        spec: path or hub id with which `load` finds the model again.
        fingerprint: digest of the model's files, 16 hex digits; it changes whenever the scores can change.
        model: the transformers model.
    """

    def __init__(self, directory: Path, options: EncoderOptions) -> None:
        """Load the model; see `load`."""
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
        """How well each picture matches its caption: logits, float32 (n,); a greater logit means a better match.

        Args:
            pictures: n RGB pictures; an object that occurs several times is prepared once.
            texts: n captions; captions that are too long are truncated.
        """
        pairs = list(zip(pictures, texts, strict=True))
        if not pairs:
            return np.zeros(0, np.float32)
        return self._runtime.run_plain(lambda part: self.match(*zip(*part, strict=True)), pairs)

    def match(self, pictures: Sequence[Image], texts: Sequence[str]) -> torch.Tensor:
        """Logits (n,) of one batch, with gradients if autograd is on."""
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
        """A context manager that sets the precision of the model's computation."""
        return self._runtime.autocast()

    def save(self, directory: Path) -> None:
        """Write the model, its tokenizer and its image processor into an existing directory."""
        for part in (self.model, self._tokenizer, self._processor):
            part.save_pretrained(directory)


def load(spec: str, options: EncoderOptions | None = None) -> CrossEncoder:
    """Load a cross-encoder.

    Args:
        spec: a model directory or a hub id.
        options: device, precision and batch size; the caption policy and the preprocessing mode have no effect here.

    Raises:
        ValueError: there is no such model, it is no cross-encoder of a known family, or its weights are incomplete.
        FileNotFoundError: the directory has no tokenizer or no image processor.
    """
    return CrossEncoder(model_directory(spec), options or EncoderOptions(batch_size=16))


def _recognise(directory: Path) -> tuple[ModelConfig, CrossFamily]:
    config = ModelConfig(directory)
    family = FAMILIES.get(config.model_type)
    wanted = ", ".join(sorted(other.model for other in FAMILIES.values()))
    if family is None:
        raise ValueError(
            f"cross-encoder {directory}: unknown model type {config.model_type!r}; give a directory that holds {wanted}"
        )
    saved_as = config.raw.get("architectures") or [family.model]
    if family.model not in saved_as:
        # The weights lack the matching head, and transformers would initialise it at random.
        raise ValueError(
            f"cross-encoder {directory}: holds {', '.join(saved_as)}, which has no matching head; give one of {wanted}"
        )
    return config, family


def _fingerprint(directory: Path, config: ModelConfig) -> str:
    files = [directory / name for name in _PROCESSOR_FILES if (directory / name).is_file()]
    if not files:
        raise FileNotFoundError(f"cross-encoder {directory}: holds no preprocessor_config.json")
    return digest_json([model_digest(directory, config.raw), tokenizer_digest(directory), digest_files(files)])


def _max_tokens(config: ModelConfig, tokenizer: Any) -> int:
    """The longest caption that the model reads, in tokens, special tokens included."""
    section = "text_config" if "text_config" in config.raw else None
    positions = int(config.get("max_position_embeddings", section))
    # RoBERTa's positions start after the index of its padding token.
    positions -= 2 if config.model_type == "bridgetower" else 0
    said = int(tokenizer.model_max_length)
    return min(positions, said) if said < _UNBOUNDED else positions
