"""The encoder of tests and examples must be deterministic, or every test that uses it would be flaky."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from encoders.images.transform import ImageTransform
from encoders.protocol import EncoderOptions, TextPolicy
from encoders.registry import describe, load


def solid(*colour: int) -> np.ndarray:
    return np.full((32, 32, 3), colour, np.uint8)


def test_vectors_are_the_same_in_another_process() -> None:
    code = "from encoders.registry import load; print(load('fake').encode_texts(['a red dog', '']).vectors.tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str(load("fake").encode_texts(["a red dog", ""]).vectors.tolist())


def test_a_vector_does_not_depend_on_its_batch() -> None:
    encoder = load("fake")
    texts = ["", "red", "a dog and a dog", "?!", "一只狗", "last"]
    alone = np.concatenate([encoder.encode_texts([text]).vectors for text in texts])
    np.testing.assert_allclose(encoder.encode_texts(texts).vectors, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1.0, atol=1e-5)


def test_a_colour_finds_its_picture() -> None:
    encoder = load("fake")
    images = encoder.encode_images([solid(255, 0, 0), solid(0, 255, 0), solid(0, 0, 255)])
    texts = encoder.encode_texts(["a red boat", "a green boat", "a blue boat"]).vectors
    assert (texts @ images.T).argmax(axis=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("policy", "rejected"), [("truncate", False), ("window", False), ("reject", True)])
def test_long_captions_are_counted(policy: TextPolicy, rejected: bool) -> None:
    found = load("fake", EncoderOptions(text_policy=policy)).encode_texts(["a dog", "word " * 65])
    assert found.overlong.tolist() == [False, True]
    assert found.rejected.tolist() == [False, rejected]
    assert found.vectors[1].any() != rejected


def test_nothing_in_nothing_out() -> None:
    encoder = load("fake-16")
    assert encoder.encode_images([]).shape == encoder.encode_texts([]).vectors.shape == (0, 16)
    assert isinstance(describe("fake-16").image_transform, ImageTransform)
