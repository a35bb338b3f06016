"""A vector that differs from the family's own pipeline is a wrong vector in a table that calls it right."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers as tf
from corpora import picture
from PIL import Image

from encoders.images import prepare
from encoders.protocol import EncoderOptions
from encoders.registry import describe, load

TEXTS = [
    "a dog",
    "a",
    "the quick brown fox on a boat",
    "",
    "一只狗",
    "red red red red red red red red red red red red red",
]
FAMILIES = {
    "clip": (tiny_models.tiny_clip, tf.CLIPModel),
    "siglip": (tiny_models.tiny_siglip, tf.SiglipModel),
    "siglip-sentencepiece": (tiny_models.tiny_siglip_sentencepiece, tf.SiglipModel),
    "siglip2": (tiny_models.tiny_siglip2, tf.Siglip2Model),
    "chinese_clip": (tiny_models.tiny_chinese_clip, tf.ChineseCLIPModel),
    "altclip": (tiny_models.tiny_altclip, tf.AltCLIPModel),
    "metaclip_2": (tiny_models.tiny_metaclip2, tf.MetaClip2Model),
}
SINGLE = {
    "bert": tiny_models.tiny_bert,
    "modernbert": tiny_models.tiny_modernbert,
    "vit": tiny_models.tiny_vit,
    "resnet": tiny_models.tiny_resnet,
    "dinov2": tiny_models.tiny_dinov2,
}
PICTURES = [picture(i, size=size) for i, size in enumerate([(48, 36), (36, 48), (100, 33), (32, 32), (7, 60)])]


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            maker = FAMILIES[name][0] if name in FAMILIES else SINGLE[name]
            made[name] = maker(tmp_path_factory.mktemp(name))
        return made[name]

    return make


def unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features.float(), dim=-1).numpy()


def own_image_vectors(directory: Path, model: Any) -> np.ndarray:
    processor = tf.AutoImageProcessor.from_pretrained(directory, backend="pil")
    rows = []
    for data in PICTURES:
        inputs = processor(images=Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            rows.append(unit(model.get_image_features(**inputs).pooler_output)[0])
    return np.stack(rows)


def own_text_vectors(directory: Path, model: Any, length: int, *, masked: bool) -> np.ndarray:
    tokenizer = tf.AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(TEXTS, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    kept = {"input_ids": inputs["input_ids"]} | ({"attention_mask": inputs["attention_mask"]} if masked else {})
    with torch.no_grad():
        return unit(model.get_text_features(**kept).pooler_output)


@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_equal_those_of_the_family_itself(name: str, directory_of: Callable[[str], Path]) -> None:
    directory = directory_of(name)
    model = FAMILIES[name][1].from_pretrained(directory).eval()
    options = EncoderOptions(preprocessing="exact", batch_size=2)
    encoder, description = load(str(directory), options), describe(str(directory))
    transform = description.image_transform
    assert transform is not None

    ours = encoder.encode_images([prepare(data, transform, "exact") for data in PICTURES])
    np.testing.assert_allclose(ours, own_image_vectors(directory, model), atol=1e-4)

    length = {"siglip": 16, "siglip-sentencepiece": 16, "siglip2": 16, "chinese_clip": 52, "altclip": 77}.get(name, 24)
    theirs = own_text_vectors(directory, model, length, masked=not name.startswith("siglip"))
    np.testing.assert_allclose(encoder.encode_texts(TEXTS).vectors, theirs, atol=1e-5)
    assert encoder.card == description.card
    assert encoder.card.towers[0].space == encoder.card.towers[1].space


@pytest.mark.parametrize("name", SINGLE)
def test_single_towers_give_unit_vectors_that_tell_inputs_apart(name: str, directory_of: Callable[[str], Path]) -> None:
    directory = directory_of(name)
    encoder, description = load(str(directory)), describe(str(directory))
    assert encoder.card == description.card
    if description.image_transform is not None:
        vectors = encoder.encode_images([prepare(data, description.image_transform) for data in PICTURES])
        with pytest.raises(ValueError, match="no text tower"):
            encoder.encode_texts(["a"])
    else:
        vectors = encoder.encode_texts(TEXTS).vectors
        with pytest.raises(ValueError, match="no image tower"):
            encoder.encode_images([])
    assert vectors.shape[1] == description.card.towers[0].dim
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert len(np.unique(vectors.round(5), axis=0)) == len(vectors)


@pytest.mark.parametrize("name", ["bert", "modernbert", "clip", "altclip"])
def test_batches_by_length_equal_one_padded_batch(name: str, directory_of: Callable[[str], Path]) -> None:
    """Sorting by length saves padding; it must not change a vector or its position."""
    directory = str(directory_of(name))
    texts = [f"{'dog ' * (i % 5)}boat {i}" for i in range(23)]
    small = load(directory, EncoderOptions(batch_size=3)).encode_texts(texts).vectors
    one_by_one = np.concatenate([load(directory).encode_texts([text]).vectors for text in texts[:6]])
    whole = load(directory, EncoderOptions(batch_size=64)).encode_texts(texts).vectors
    np.testing.assert_allclose(small, whole, atol=1e-5)
    np.testing.assert_allclose(one_by_one, whole[:6], atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "siglip-sentencepiece"])
def test_long_captions_are_cut_windowed_or_refused_never_silently(
    name: str, directory_of: Callable[[str], Path]
) -> None:
    directory = str(directory_of(name))
    long = "dog boat " * 60
    results = {
        policy: load(directory, EncoderOptions(text_policy=policy)).encode_texts(["a dog", long, "boat"])  # type: ignore[arg-type]
        for policy in ("truncate", "window", "reject")
    }
    for policy, result in results.items():
        assert result.overlong.tolist() == [False, True, False], policy
        np.testing.assert_allclose(result.vectors[0], results["truncate"].vectors[0], atol=1e-5)
    assert results["reject"].rejected.tolist() == [False, True, False]
    assert not results["truncate"].rejected.any()
    assert not np.allclose(results["window"].vectors[1], results["truncate"].vectors[1], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(results["window"].vectors[1]), 1.0, atol=1e-5)


def test_a_directory_without_safetensors_says_how_to_convert(tmp_path: Path) -> None:
    directory = tiny_models.tiny_bert(tmp_path / "m")
    weights = next(directory.glob("*.safetensors"))
    weights.rename(directory / "pytorch_model.bin")
    for function in (describe, load):
        with pytest.raises(ValueError, match=r"no \*\.safetensors, only pytorch_model\.bin.*save_pretrained"):
            function(str(directory))


def test_the_fingerprint_changes_with_the_weights_the_tokenizer_and_the_preprocessing(tmp_path: Path) -> None:
    directory = tiny_models.tiny_clip(tmp_path / "m")
    seen = {describe(str(directory)).card.fingerprint}
    for name in ("model.safetensors", "tokenizer.json"):
        path = directory / name
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(bytes(data))
        seen.add(describe(str(directory)).card.fingerprint)
    path = next(p for p in directory.glob("*processor_config.json"))
    path.write_text(path.read_text().replace('"resample": 3', '"resample": 2'))
    seen.add(describe(str(directory)).card.fingerprint)
    assert len(seen) == 4


def test_unknown_encoders_are_told_apart_from_missing_ones() -> None:
    with pytest.raises(ValueError, match="neither a registered name"):
        describe("no such thing")
    with pytest.raises(ValueError, match="the hub did not give it"):
        describe("nobody/nothing-at-all")


def test_a_model_that_brings_its_own_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mystery", "auto_map": {"AutoModel": "m.M"}}')
    with pytest.raises(ValueError, match="needs code from its own directory"):
        describe(str(tmp_path))
