"""A seeded permutation of any number of rows that takes no memory, and random numbers that any process can compute."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 4
_MULTIPLIERS = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)


def permuted(places: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """The places to which a random permutation of `count` rows moves some places, int64 (n,).

    The permutation is a Feistel network over the smallest even number of bits that holds `count`. Values that fall
    outside are sent through it again (cycle walking), so it is a bijection for every count. Black & Rogaway, CT-RSA
    2002.

    Args:
        places: int64 (n,), each in [0, count).
        count: total number of rows.
        seed: each seed gives a different permutation.

    >>> sorted(permuted(np.arange(5), 5, 7).tolist())
    [0, 1, 2, 3, 4]
    """
    half = max(1, math.ceil(max(count - 1, 1).bit_length() / 2))
    found = _rounds(places.astype(np.uint64), half, seed)
    while (outside := found >= count).any():
        found[outside] = _rounds(found[outside], half, seed)
    return found.astype(np.int64)


def mixed(*parts: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash of numbers, elementwise; the same on every machine."""
    with np.errstate(over="ignore"):
        state = np.asarray(0x9E3779B97F4A7C15, np.uint64)
        for part in parts:
            state = _finalise(state ^ (np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)))
    return state


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of a process's random numbers in a step; a repeated step draws the same numbers."""
    return int(mixed(seed, step, rank) >> np.uint64(1))


def _rounds(values: NDArray[np.uint64], half: int, seed: int) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for i in range(_ROUNDS):
        left, right = right, left ^ (mixed(seed, i, right.astype(np.int64)) & mask)
    return (left << np.uint64(half)) | right


def _finalise(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """MurmurHash3's finaliser: each bit of the input flips each bit of the output with probability one half."""
    for multiplier in _MULTIPLIERS:
        state = (state ^ (state >> np.uint64(33))) * np.uint64(multiplier)
    return state ^ (state >> np.uint64(33))
