"""Recall on held-out rows, against a loop that ranks one query at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.train.finetuning.validation import retrieval_metrics


def oracle(image: np.ndarray, text: np.ndarray, items: list[int], texts: list[int]) -> dict[str, float]:
    """Each direction by itself: queries, gallery, and the first right answer in the list."""
    pictures = [items.index(i) for i in dict.fromkeys(items)]
    captions = [texts.index(t) for t in dict.fromkeys(texts)]
    pairs = set(zip(items, texts, strict=True))
    ranks: dict[str, list[int]] = {"text_to_image": [], "image_to_text": []}
    for row, said in enumerate(texts):
        order = sorted(pictures, key=lambda p: -round(float(text[row] @ image[p]), 9))
        ranks["text_to_image"].append(1 + [(items[p], said) in pairs for p in order].index(True))
    for p in pictures:
        order = sorted(captions, key=lambda c: -round(float(image[p] @ text[c]), 9))
        ranks["image_to_text"].append(1 + [(items[p], texts[c]) in pairs for c in order].index(True))
    found = {f"{way} R@{k}": float(np.mean([r <= k for r in rs])) for way, rs in ranks.items() for k in (1, 5, 10)}
    found |= {f"R@{k}": (found[f"text_to_image R@{k}"] + found[f"image_to_text R@{k}"]) / 2 for k in (1, 5, 10)}
    return found | {"MRR": float(np.mean([1 / r for r in ranks["text_to_image"]]))}


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_metrics_equal_a_loop(data: st.DataObject) -> None:
    """Ties, several captions of a picture, and one caption of two pictures: where fast code goes wrong."""
    n = data.draw(st.integers(1, 25))
    rng = np.random.default_rng(data.draw(st.integers(0, 9999)))
    items, texts = (rng.integers(0, data.draw(st.integers(1, 25)), n) for _ in range(2))
    grid = rng.integers(-1, 2, (30, 3)) + np.array([0.0, 0.0, 0.5])
    pool = (grid / np.linalg.norm(grid, axis=1, keepdims=True)).astype(np.float32)
    # A picture has one vector in every row that holds it; so has a caption.
    image, text = pool[items % 5], pool[texts % 7]
    found = retrieval_metrics(*(torch.from_numpy(a) for a in (image, text, items, texts)))
    expected = oracle(image.astype(np.float64), text.astype(np.float64), items.tolist(), texts.tolist())
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_caption_of_two_pictures_is_right_about_both() -> None:
    """Two pictures called "dog": finding either one is right."""
    eye = torch.eye(3)
    image, text = eye, torch.stack([eye[1], eye[1], eye[2]])
    found = retrieval_metrics(image, text, torch.tensor([0, 1, 2]), torch.tensor([7, 7, 8]))
    assert found["text_to_image R@1"] == 1.0
    assert retrieval_metrics(image, text, torch.tensor([0, 1, 2]), torch.tensor([6, 7, 8]))["text_to_image R@1"] < 1.0


def test_a_model_that_gives_everything_one_vector_is_not_perfect() -> None:
    """Ties in favour of the right answer would make a collapsed model the best ever."""
    same = torch.nn.functional.normalize(torch.ones(40, 4), dim=1)
    found = retrieval_metrics(same, same, torch.arange(40), torch.arange(40))
    assert found["R@1"] == pytest.approx(1 / 40)
    assert found["R@10"] == pytest.approx(10 / 40)


def test_captions_of_one_picture_count_it_once_in_the_gallery() -> None:
    eye = torch.eye(4)
    image = eye[torch.tensor([0] * 9 + [1])]
    text = image.clone()
    text[9] = torch.nn.functional.normalize(eye[0] + 0.5 * eye[1], dim=0)
    found = retrieval_metrics(image, text, torch.tensor([0] * 9 + [1]), torch.arange(10))
    assert found["MRR"] == pytest.approx((9 + 1 / 2) / 10)


def test_vectors_that_are_no_numbers_are_found_last() -> None:
    image, text, ids = torch.eye(3), torch.eye(3), torch.arange(3)
    text[1] = torch.nan
    found = retrieval_metrics(image, text, ids, ids)
    assert found["text_to_image R@1"] == pytest.approx(2 / 3)
    assert found["image_to_text R@1"] == pytest.approx(2 / 3)
    assert found["MRR"] == pytest.approx((1 + 1 + 1 / 3) / 3)
