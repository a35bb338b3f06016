"""Cross-encoders score a pair as their own pipelines in transformers do, whether alone or in a batch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from tiny_models import tiny_blip, tiny_bridgetower, tiny_chinese_clip, tiny_vilt

from encoders.cross import CrossEncoder, load

MAKERS: dict[str, Callable[[Path], Path]] = {
    "blip": tiny_blip,
    "vilt": tiny_vilt,
    "bridgetower": tiny_bridgetower,
}
TEXTS = ["a dog", "a cat on a boat", "一只红色的船", "x" * 300, ""]


@pytest.fixture(scope="module", params=MAKERS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def model(directory: Path) -> CrossEncoder:
    return load(str(directory))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Wide, tall, square, one pixel high, and a large picture."""
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (64, 32), (33, 33), (20, 90), (300, 400)]
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


def by_transformers(directory: Path, picture: Image.Image, text: str) -> float:
    """The computation of the library's own example."""
    kind = tf.AutoConfig.from_pretrained(directory).model_type
    classes: dict[str, Any] = {
        "blip": (tf.BlipForImageTextRetrieval, tf.BlipImageProcessorPil),
        "vilt": (tf.ViltForImageAndTextRetrieval, tf.ViltImageProcessorPil),
        "bridgetower": (tf.BridgeTowerForImageAndTextRetrieval, tf.BridgeTowerImageProcessorPil),
    }
    model = classes[kind][0].from_pretrained(directory).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(directory)
    most = min(tokenizer.model_max_length, 38 if kind == "bridgetower" else 40)
    read = tokenizer([text], truncation=True, max_length=most, return_tensors="pt")
    tokens = {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"]}
    seen = classes[kind][1].from_pretrained(directory)(images=[picture], return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, **seen)
    logits = out.itm_score if kind == "blip" else out.logits
    return float(logits[0, 1] - logits[0, 0]) if logits.shape[1] == 2 else float(logits[0, 0])


def test_a_pair_scores_as_in_transformers_whatever_is_beside_it(
    directory: Path, model: CrossEncoder, pictures: list[Image.Image]
) -> None:
    wanted = [by_transformers(directory, picture, text) for picture, text in zip(pictures, TEXTS, strict=True)]
    together = model.score(pictures, TEXTS)
    alone = [model.score([picture], [text])[0] for picture, text in zip(pictures, TEXTS, strict=True)]
    np.testing.assert_allclose(together, wanted, atol=2e-5)
    np.testing.assert_allclose(alone, wanted, atol=2e-5)
    assert len(set(np.round(wanted, 4))) > 1, "the pairs are told apart at all"


def test_a_picture_with_several_captions_is_prepared_once_and_scores_the_same(
    model: CrossEncoder, pictures: list[Image.Image]
) -> None:
    same = model.score([pictures[0]] * len(TEXTS), TEXTS)
    np.testing.assert_allclose(same, model.score([pictures[0].copy() for _ in TEXTS], TEXTS), atol=2e-6)
    assert model.score([], []).shape == (0,)


def test_what_is_saved_scores_the_same(model: CrossEncoder, pictures: list[Image.Image], tmp_path: Path) -> None:
    model.save(tmp_path)
    again = load(str(tmp_path))
    np.testing.assert_allclose(again.score(pictures, TEXTS), model.score(pictures, TEXTS), atol=2e-6)


def test_models_that_cannot_match_are_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown model type 'chinese_clip'; give a directory that holds Blip"):
        load(str(tiny_chinese_clip(tmp_path / "clip")))
    shutil.copytree(directory, tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no preprocessor_config"):
        load(str(tmp_path / "m"))


def test_a_checkpoint_without_the_head_is_refused(tmp_path: Path) -> None:
    tiny_vilt(tmp_path)
    config = tf.ViltConfig.from_pretrained(tmp_path)
    tf.ViltForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds ViltForMaskedLM, which has no matching head"):
        load(str(tmp_path))
