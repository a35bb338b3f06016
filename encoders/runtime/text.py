"""Captions to vectors: tokenised once, sorted by length, padded to the longest of a batch, put back in order.

On a CPU a batch is bounded by tokens too, since a core is busy with a few hundred: the few long captions of a call then
make no others long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.protocol import TextPolicy, TextVectors, TowerCard
from encoders.runtime.acceleration import is_settled
from encoders.runtime.device import Runtime

TokenBatch = dict[str, torch.Tensor]
_CPU_TOKENS = 512
_SAMPLE_CAPTIONS = (
    "a dog",
    "one red house",
    "two cats asleep on a grey sofa",
    "一只狗",
    "the small boat of a fisherman, drawn up on the sand between nets and baskets in the evening",
    "7:30",
    "an old map",
    "children run after a kite on a wide green hill",
)


@dataclass(kw_only=True)
class TextTower:
    """A text tower that is ready to run.

    Attributes:
        tokenizer: of transformers, fast or slow, or one that is loaded when it is used.
        forward: token batch → features (n, dim), not normalised.
        max_tokens: the longest input, special tokens included.
        pad_to_max: whether the tower was trained on inputs padded to `max_tokens` without a mask (SigLIP), so that
            shorter padding would change its vectors.
        dim: length of its vectors.
        runtime: where it runs.
        policy: what happens to longer captions.
        card: of the tower, by which its OpenVINO graph is kept; None keeps none.
    """

    tokenizer: Any
    forward: InitVar[Callable[[TokenBatch], torch.Tensor]]
    max_tokens: int
    pad_to_max: bool
    dim: int
    runtime: Runtime
    policy: TextPolicy
    card: TowerCard | None = None
    _chosen: Callable[[TokenBatch], torch.Tensor] = field(init=False, repr=False)

    def __post_init__(self, forward: Callable[[TokenBatch], torch.Tensor]) -> None:
        """Keep only what is needed, so that a tower that went over to OpenVINO lets its torch weights go."""
        self._chosen = self.runtime.fastest(forward, tower=self.card)

    def settle(self) -> None:
        """Encode some captions, where OpenVINO was asked for: it is then found out now whether it takes this tower."""
        if self.runtime.settles_at_once and not is_settled(self._chosen):
            self.encode(_SAMPLE_CAPTIONS)

    def encode(self, texts: Sequence[str]) -> TextVectors:
        """Vectors (n, dim) of n captions, in the order given."""
        n = len(texts)
        if n == 0:
            return TextVectors(
                vectors=np.zeros((0, self.dim), np.float32),
                overlong=np.zeros(0, np.bool_),
                rejected=np.zeros(0, np.bool_),
            )
        windows, owner = self._windows(texts)
        overlong = np.bincount(owner, minlength=n) > 1
        if self.policy != "window":
            first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
            windows, owner = [windows[i] for i in first], owner[first]
        vectors = self._average(self._encode_windows(windows), owner, n)
        rejected = overlong if self.policy == "reject" else np.zeros(n, np.bool_)
        vectors[rejected] = 0.0
        return TextVectors(vectors=vectors, overlong=overlong, rejected=rejected)

    def _windows(self, texts: Sequence[str]) -> tuple[list[list[int]], NDArray[np.int64]]:
        """Token ids of each window of at most `max_tokens`, and the caption that each belongs to."""
        if not self.tokenizer.is_fast:
            return windows_of_slow(self.tokenizer, texts, self.max_tokens)
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_tokens, return_overflowing_tokens=True
        )
        return list(encoded["input_ids"]), np.asarray(encoded["overflow_to_sample_mapping"], np.int64)

    def _encode_windows(self, windows: list[list[int]]) -> NDArray[np.float32]:
        order = sorted(range(len(windows)), key=lambda i: len(windows[i]), reverse=True)
        ordered = [windows[i] for i in order]
        lengths = [self.max_tokens if self.pad_to_max else len(window) for window in ordered]
        most = _CPU_TOKENS if self.runtime.device.type == "cpu" else None
        found = np.concatenate(
            [self.runtime.run(self._features, ordered[part]) for part in cut_by_tokens(lengths, most)]
        )
        vectors = np.empty_like(found)
        vectors[order] = found
        return vectors

    def _features(self, windows: Sequence[list[int]]) -> torch.Tensor:
        padding = {"padding": "max_length", "max_length": self.max_tokens} if self.pad_to_max else {"padding": True}
        batch = self.tokenizer.pad({"input_ids": list(windows)}, return_tensors="pt", **padding)
        return self._chosen({name: self.runtime.tensor(tensor) for name, tensor in batch.items()})

    @staticmethod
    def _average(vectors: NDArray[np.float32], owner: NDArray[np.int64], n: int) -> NDArray[np.float32]:
        """The normalised mean of each caption's windows."""
        if len(owner) == n:
            return vectors
        sums = np.zeros((n, vectors.shape[1]), np.float32)
        np.add.at(sums, owner, vectors)
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def cut_by_tokens(lengths: Sequence[int], most: int | None) -> list[slice]:
    """Slices of inputs sorted by length, the longest first, of at most `most` tokens when padded; all in one for None.
    An input that is longer is a slice of its own.

    >>> [(part.start, part.stop) for part in cut_by_tokens([9, 4, 4, 3, 1], 8)]
    [(0, 1), (1, 3), (3, 5)]
    """
    if most is None:
        return [slice(0, len(lengths))]
    parts, start = [], 0
    while start < len(lengths):
        stop = min(len(lengths), start + max(1, most // max(1, lengths[start])))
        parts.append(slice(start, stop))
        start = stop
    return parts


def windows_of_slow(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> tuple[list[list[int]], NDArray[np.int64]]:
    """As a fast tokenizer's overflowing tokens, for one without them (SigLIP's is plain SentencePiece).

    Returns:
        Token ids of each window, and the index of the text that each belongs to.
    """
    room = max_tokens - tokenizer.num_special_tokens_to_add(pair=False)
    windows: list[list[int]] = []
    owner: list[int] = []
    for i, ids in enumerate(tokenizer(list(texts), add_special_tokens=False)["input_ids"]):
        for start in range(0, max(len(ids), 1), room):
            windows.append(tokenizer.build_inputs_with_special_tokens(ids[start : start + room]))
            owner.append(i)
    return windows, np.asarray(owner, np.int64)
