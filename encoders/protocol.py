"""The interface of encoders: a card that describes one, and two functions that return L2-normalised vectors.

The card is plain data. It can be made from a model's configuration files alone, so the driver of a run knows dimensions
and fingerprints without loading any weights. It is stored in the metadata of every table.
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
        modality: what the tower reads, `image` or `text`.
        dim: dimension of its vectors.
        space: name of the vector space. Vectors of two towers may be compared if and only if their spaces are equal; a
            two-tower model has one space, a pair of unrelated towers has two.
        weights: digest of the weights that the tower uses.
        tokenizer: digest of the tokenizer's files; None for an image tower.
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
        """Digest of 16 hex digits; it changes exactly when the tower's vectors can change."""
        from encoders.digest import digest_json

        return digest_json(asdict(self))


@dataclass(frozen=True, kw_only=True)
class EncoderCard:
    """An encoder as data: its name, the spec that loads it again, and its towers (at most one per modality)."""

    name: str
    spec: str
    towers: tuple[TowerCard, ...]

    def tower(self, modality: Modality) -> TowerCard | None:
        """The tower that reads `modality`; None if there is none."""
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
    """How to run an encoder. Nothing here changes the meaning of the vectors, so nothing here is in a fingerprint.

    Attributes:
        preprocessing: `fast` decodes large JPEGs at reduced scale (cosine >= 0.999 to `exact`); `exact` equals the
            model family's own processor.
        text_policy: what to do with captions longer than the text tower reads: `truncate` them, average over windows
            (`window`), or `reject` them.
        device: where the model runs; `auto` takes CUDA if there is a GPU.
        precision: `auto` is bf16 (else fp16) autocast on CUDA, fp32 on the CPU. `int8`, on the CPU by OpenVINO,
            quantises the linear layers of a tower as far as its vectors keep a cosine of 0.99; the other layers stay in
            fp32.
        backend: what computes on the CPU. `auto` switches from torch to OpenVINO once a batch has shown that OpenVINO
            gives the same vectors (cosine >= 0.9999 in fp32) faster; `openvino` uses it from the start. CUDA always
            uses torch, and so do pictures of varying size.
        threads: CPU threads of torch or OpenVINO; None keeps torch's default.
        batch_size: the most inputs per forward pass; halved automatically when the device's memory runs out.
    """

    preprocessing: Preprocessing = "fast"
    text_policy: TextPolicy = "truncate"
    device: Device = "auto"
    precision: Precision = "auto"
    backend: Backend = "auto"
    threads: int | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check the options, so that a contradiction is found on the driver and not in every worker."""
        if self.precision == "int8" and self.backend == "torch":
            raise ValueError("precision 'int8' with backend 'torch': only OpenVINO computes int8; drop one of the two")
        if self.device == "cuda" and (self.precision == "int8" or self.backend == "openvino"):
            asked = "precision 'int8'" if self.precision == "int8" else "backend 'openvino'"
            raise ValueError(f"{asked} with device 'cuda': OpenVINO computes on the CPU; drop one of the two")


@dataclass(frozen=True, kw_only=True)
class TextVectors:
    """Vectors of n captions.

    Attributes:
        vectors: float32 (n, dim), L2-normalised; the rows of rejected captions are zero.
        overlong: bool (n,), true for captions longer than the tower reads, under every policy.
        rejected: bool (n,), true for captions rejected under the policy `reject`.
    """

    vectors: NDArray[np.float32]
    overlong: NDArray[np.bool_]
    rejected: NDArray[np.bool_]


class Encoder(Protocol):
    """Pictures and captions in, L2-normalised float32 vectors out.

    Calling it for a modality that is not in `card.modalities` raises ValueError.
    """

    @property
    def card(self) -> EncoderCard:
        """The encoder's name, spec and towers."""
        ...

    def encode_images(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Vectors (n, dim) of n pictures prepared by `encoders.images.prepare`, uint8 (height, width, 3) RGB."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Vectors (n, dim) of n captions, in the order given."""
        ...
