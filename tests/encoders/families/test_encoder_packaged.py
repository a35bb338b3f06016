"""The packaged pretrained towers are real: a photograph gets its class, a translation is the nearest neighbour."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from encoders.families.efficientnet_lite import TRANSFORM, load_pretrained
from encoders.images import prepare
from encoders.protocol import EncoderOptions
from encoders.registry import describe, load

PALACE, DAISY = 698, 985


def photograph(name: str, kind: str = "PNG", scale: int = 1) -> bytes:
    image = Image.fromarray(load_sample_image(name))
    buffer = io.BytesIO()
    image.resize((image.width * scale, image.height * scale)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "label"), [("china.jpg", PALACE), ("flower.jpg", DAISY)])
def test_efficientnet_gives_a_photograph_its_imagenet_class(name: str, label: int) -> None:
    model = load_pretrained().eval()
    pixels = TRANSFORM.normalise([prepare(photograph(name), TRANSFORM, "exact")])
    with torch.inference_mode():
        logits = model.classify(torch.from_numpy(pixels))[0]
    assert int(logits.argmax()) == label
    assert float(logits.softmax(-1)[label]) > 0.25


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5, 7])
def test_fast_preprocessing_gives_the_same_embedding_of_a_photograph(name: str, scale: int) -> None:
    encoder = load("efficientnet-lite0")
    data = photograph(name, "JPEG", scale)
    fast, exact = encoder.encode_images([prepare(data, TRANSFORM, mode) for mode in ("fast", "exact")])
    assert float(fast @ exact) >= 0.999


def test_channels_last_batches_equal_single_pictures() -> None:
    encoder = load("efficientnet-lite0", EncoderOptions(batch_size=2))
    pixels = [prepare(photograph(name), TRANSFORM) for name in ("china.jpg", "flower.jpg", "china.jpg")]
    together = encoder.encode_images(pixels)
    alone = np.concatenate([encoder.encode_images([p]) for p in pixels])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_minilm_equals_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    from encoders.families.packaged import minilm_directory

    texts = ["a dog", "a bowl of rice", "", "word " * 600]
    theirs = SentenceTransformer(str(minilm_directory()), device="cpu").encode(texts, normalize_embeddings=True)
    ours = load("minilm").encode_texts(texts)
    np.testing.assert_allclose(ours.vectors, theirs, atol=1e-5)
    assert ours.overlong.tolist() == [False, False, False, True]


def test_the_multilingual_encoder_brings_translations_together() -> None:
    encoder = load("use-multilingual", EncoderOptions(batch_size=2))
    english = encoder.encode_texts(["a dog", "a bowl of rice", "a red car"]).vectors
    chinese = encoder.encode_texts(["一只狗", "一碗米饭", "一辆红色的汽车"]).vectors
    similar = english @ chinese.T
    assert (similar.argmax(axis=1) == [0, 1, 2]).all()
    assert similar.diagonal().min() > 0.6
    assert similar[~np.eye(3, dtype=bool)].max() < 0.5


def test_a_pair_keeps_its_two_spaces_apart() -> None:
    card = describe("efficientnet-lite0+use-multilingual").card
    assert [(t.modality, t.dim) for t in card.towers] == [("image", 1280), ("text", 512)]
    assert card.towers[0].space != card.towers[1].space
    with pytest.raises(ValueError, match="'use-multilingual': has no image tower"):
        describe("use-multilingual+minilm")
