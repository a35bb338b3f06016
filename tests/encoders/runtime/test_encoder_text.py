"""On a CPU, batches of captions are bounded by tokens: no caption may be lost, swapped or changed by the split."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import encoders.runtime.text
from encoders.registry import load
from encoders.runtime.text import TextTower, cut_by_tokens
from tests.tiny_models import tiny_bert


@given(st.lists(st.integers(0, 300), min_size=1, max_size=200), st.integers(1, 512))
def test_slices_cover_all_in_order_and_none_is_above_the_bound_but_alone(lengths: list[int], most: int) -> None:
    lengths = sorted(lengths, reverse=True)
    parts = cut_by_tokens(lengths, most)
    assert [i for part in parts for i in range(len(lengths))[part]] == list(range(len(lengths)))
    for part in parts:
        cut = lengths[part]
        assert len(cut) == 1 or max(cut) * len(cut) <= most


def test_the_documented_cut_is_the_cut() -> None:
    assert doctest.testmod(encoders.runtime.text).failed == 0


def test_a_long_caption_makes_no_other_long_and_changes_no_vector(tmp_path: Path) -> None:
    """Padding 64 captions to the length of one long caption multiplies the work."""
    words = ["a dog", "a red car on a road", "house", "a small cat in a tree"]
    texts = [f"{words[i % 4]} {words[i % 3]}" for i in range(90)]
    texts[41] = "dog car " * 100
    encoder: Any = load(str(tiny_bert(tmp_path / "bert")))
    tower: TextTower = encoder._text
    shapes: list[torch.Size] = []

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        shapes.append(batch["input_ids"].shape)
        return tower._chosen(batch)

    together = replace(tower, forward=forward).encode(texts).vectors
    alone = np.concatenate([tower.encode([text]).vectors for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert sum(rows for rows, _ in shapes) == len(texts)
    lengths = [min(len(ids), tower.max_tokens) for ids in tower.tokenizer(texts)["input_ids"]]
    assert max(lengths) == tower.max_tokens
    assert sum(rows * tokens for rows, tokens in shapes) < 1.5 * sum(lengths)
