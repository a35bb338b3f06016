"""What an encoder is: a card that describes it, and two functions that give L2-normalised vectors.

The card is plain data. It can be made from a model's configuration files alone, so that the driver of a job
knows dimensions and fingerprints without loading any weights, and it travels in the metadata of every table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Modality = Literal["image", "text"]
TextPolicy = Literal["truncate", "window", "reject"]
Preprocessing = Literal["fast", "exact"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Backend = Literal["auto", "torch", "openvino"]


@dataclass(frozen=True, kw_only=True)
class TowerCard:
    """One tower of an encoder.

    Attributes:
        modality: what the tower reads.
        dim: length of its vectors.
        space: name of the vector space. Vectors of two towers may be compared exactly when their spaces are
            equal; a two-tower model has one space, a pair of unrelated towers has two.
        weights: digest of the weights that the tower uses.
        tokenizer: digest of the tokenizer's files, None for an image tower.
        preprocessing: digest of everything between the raw input and the weights (resize, crop, mean, pooling).
    """

    modality: Modality
    dim: int
    space: str
    weights: str
    tokenizer: str | None
    preprocessing: str

    @property
    def fingerprint(self) -> str:
        """Digest that changes exactly when the tower's vectors can change, 16 hex digits."""
        from encoders.digest import digest_json

        return digest_json(asdict(self))


@dataclass(frozen=True, kw_only=True)
class EncoderCard:
    """An encoder as data: its name, how to load it again, and its towers (at most one a modality)."""

    name: str
    spec: str
    towers: tuple[TowerCard, ...]

    def tower(self, modality: Modality) -> TowerCard | None:
        """The tower that reads `modality`, or None."""
        return next((tower for tower in self.towers if tower.modality == modality), None)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities that the encoder reads, in the order of its towers."""
        return tuple(tower.modality for tower in self.towers)

    @property
    def fingerprint(self) -> str:
        """Digest of all towers, 16 hex digits."""
        from encoders.digest import digest_json

        return digest_json([tower.fingerprint for tower in self.towers])

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EncoderCard:
        """The inverse of `to_dict`."""
        towers = tuple(TowerCard(**tower) for tower in data["towers"])
        return cls(name=data["name"], spec=data["spec"], towers=towers)


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """How an encoder is run. Nothing here changes what the vectors mean, so nothing here is in a fingerprint.

    Attributes:
        preprocessing: `fast` decodes large JPEGs at reduced scale (cosine >= 0.999 to `exact`); `exact` equals
            the model family's own processor.
        text_policy: what happens to captions longer than the text tower reads.
        device: where the model runs; `auto` takes CUDA where there is one.
        precision: `auto` is bf16 (else fp16) autocast on CUDA, fp32 on the CPU. `int8`, on the CPU by OpenVINO, rounds
            the linear layers of a tower as far as its vectors keep a cosine of 0.99; the rest is fp32.
        backend: what computes on the CPU. `auto` goes over from torch to OpenVINO once a batch has shown that it gives
            the same vectors (cosine >= 0.9999 in fp32) faster; `openvino` does so from the start. CUDA is torch's, and
            so are pictures of varying size.
        threads: threads of either on the CPU, None leaves torch's default.
        batch_size: the most inputs of one forward pass; halved by itself when the device's memory runs out.
    """

    preprocessing: Preprocessing = "fast"
    text_policy: TextPolicy = "truncate"
    device: Device = "auto"
    precision: Precision = "auto"
    backend: Backend = "auto"
    threads: int | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Checked here, so that a contradiction is found on the driver and not by every worker."""
        if self.precision == "int8" and self.backend == "torch":
            raise ValueError("precision 'int8' with backend 'torch': int8 is OpenVINO's; drop one of the two")
        if self.device == "cuda" and (self.precision == "int8" or self.backend == "openvino"):
            asked = "precision 'int8'" if self.precision == "int8" else "backend 'openvino'"
            raise ValueError(f"{asked} with device 'cuda': OpenVINO computes on the CPU; drop one of the two")


@dataclass(frozen=True, kw_only=True)
class TextVectors:
    """Vectors of captions.

    Attributes:
        vectors: float32 (n, dim), L2-normalised; rows that are `rejected` are zero.
        overlong: bool (n,), captions longer than the tower reads, whatever was done about it.
        rejected: bool (n,), captions refused under the `reject` policy.
    """

    vectors: NDArray[np.float32]
    overlong: NDArray[np.bool_]
    rejected: NDArray[np.bool_]


class Encoder(Protocol):
    """Pictures and captions in, L2-normalised float32 vectors out. Calling it for a modality that is not in
    `card.modalities` raises ValueError."""

    @property
    def card(self) -> EncoderCard:
        """What this encoder is."""
        ...

    def encode_images(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Vectors (n, dim) of pictures that `encoders.images.prepare` made: uint8 (height, width, 3) RGB."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Vectors of captions, in the order given."""
        ...
