"""A directory whose files are not what they seem gives wrong vectors under a right name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import tiny_models
import torch
import transformers as tf
from tiny_models import edit_json, edit_weights

from encoders.protocol import EncoderOptions
from encoders.registry import describe, load

TEXTS = ["a dog", "a boat", ""]
PIXELS = [np.full((32, 32, 3), shade, np.uint8) for shade in (0, 90, 255)]


def test_the_fingerprint_changes_with_the_activation(tmp_path: Path) -> None:
    """CLIP checkpoints may use gelu or quick_gelu with weights of the same shape."""
    directory = tiny_models.tiny_bert(tmp_path / "m")
    before, vectors = describe(str(directory)).card, load(str(directory)).encode_texts(TEXTS).vectors
    edit_json(directory / "config.json", hidden_act="relu")
    assert not np.allclose(load(str(directory)).encode_texts(TEXTS).vectors, vectors, atol=1e-4)
    assert describe(str(directory)).card.fingerprint != before.fingerprint


def test_the_fingerprint_does_not_change_with_the_bookkeeping(tmp_path: Path) -> None:
    """A directory saved again by a newer transformers still fits the tables that it made before."""
    directory = tiny_models.tiny_bert(tmp_path / "m")
    before = describe(str(directory)).card.fingerprint
    edit_json(directory / "config.json", transformers_version="9.9", architectures=["Other"])
    assert describe(str(directory)).card.fingerprint == before


@pytest.mark.parametrize("maker", [tiny_models.tiny_clip, tiny_models.tiny_bert, tiny_models.tiny_vit])
def test_missing_weights_are_refused_not_made_up(maker: object, tmp_path: Path) -> None:
    """transformers initialises them at random, so every actor of a job would give other vectors."""
    directory = maker(tmp_path / "m")  # type: ignore[operator]
    edit_weights(directory, lambda w: {k: v for k, v in w.items() if "layers.1." not in k and "layer.1." not in k})
    with pytest.raises(ValueError, match=r"lack .* of the weights"):
        load(str(directory))


def test_a_text_tower_without_its_unused_pooler_loads(tmp_path: Path) -> None:
    directory = tiny_models.tiny_bert(tmp_path / "m")
    vectors = load(str(directory)).encode_texts(TEXTS).vectors
    edit_weights(directory, lambda weights: {k: v for k, v in weights.items() if "pooler" not in k})
    np.testing.assert_array_equal(load(str(directory)).encode_texts(TEXTS).vectors, vectors)


def test_weights_stored_in_half_precision_are_run_in_full_precision_on_the_cpu(tmp_path: Path) -> None:
    directory = tiny_models.tiny_clip(tmp_path / "m")
    tiny_models.halve(directory)
    model = tf.CLIPModel.from_pretrained(directory, dtype=torch.float32).eval()
    encoder, transform = (
        load(str(directory), EncoderOptions(precision="fp32")),
        describe(str(directory)).image_transform,
    )
    assert transform is not None
    with torch.no_grad():
        theirs = model.get_image_features(pixel_values=torch.from_numpy(transform.normalise(PIXELS))).pooler_output
    unit = torch.nn.functional.normalize(theirs, dim=-1).numpy()
    np.testing.assert_allclose(encoder.encode_images(PIXELS), unit, atol=1e-6)


def test_a_vision_tower_without_a_class_token_uses_its_trained_head(tmp_path: Path) -> None:
    """The first token of SigLIP is the top left corner of the picture."""
    directory = tiny_models.tiny_siglip_vision(tmp_path / "m")
    model, transform = tf.SiglipVisionModel.from_pretrained(directory).eval(), describe(str(directory)).image_transform
    assert transform is not None
    with torch.no_grad():
        theirs = model(pixel_values=torch.from_numpy(transform.normalise(PIXELS))).pooler_output
    unit = torch.nn.functional.normalize(theirs, dim=-1).numpy()
    np.testing.assert_allclose(load(str(directory)).encode_images(PIXELS), unit, atol=1e-5)


def test_a_model_of_several_unknown_towers_is_refused_by_name(tmp_path: Path) -> None:
    tf.BlipConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'blip' has several towers.*clip, siglip"):
        describe(str(tmp_path))


def test_a_model_that_masks_at_random_is_refused(tmp_path: Path) -> None:
    directory = tiny_models.tiny_vit(tmp_path / "m")
    edit_json(directory / "config.json", model_type="vit_mae")
    with pytest.raises(ValueError, match="masks patches at random"):
        describe(str(directory))


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "pooling lasttoken"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, r"cls \+ mean"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "the prompt 'query'"),
    ],
)
def test_sentence_transformers_settings_that_are_not_followed_are_refused(
    file: str, entries: dict[str, object], message: str, tmp_path: Path
) -> None:
    directory = tiny_models.tiny_bert(tmp_path / "m")
    edit_json(directory / file, **entries)
    with pytest.raises(ValueError, match=message):
        describe(str(directory))


def test_a_dense_layer_on_top_is_refused(tmp_path: Path) -> None:
    """LaBSE and similar models end in a dense layer; without it the vectors are those of another model."""
    directory = tiny_models.tiny_bert(tmp_path / "m")
    (directory / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(ValueError, match="Dense, which isthmus does not run"):
        describe(str(directory))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_poolings_equal_those_of_sentence_transformers(pooling: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    directory = tiny_models.tiny_bert(tmp_path / "bert")
    modules = [Transformer(str(directory)), Pooling(32, pooling_mode=pooling), Normalize()]
    theirs = SentenceTransformer(modules=modules, device="cpu")
    theirs.save_pretrained(str(tmp_path / "st"))
    ours = load(str(tmp_path / "st")).encode_texts(TEXTS).vectors
    np.testing.assert_allclose(ours, theirs.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2", "chinese_clip", "altclip", "metaclip2", "bert", "vit"])
def test_a_card_is_made_without_torch(name: str, tmp_path: Path) -> None:
    """A job's driver and `isthmus plan` need a card, without seconds of imports."""
    directory = getattr(tiny_models, f"tiny_{name}")(tmp_path / "m")
    _describe_without_torch(str(directory))


@pytest.mark.parametrize("name", ["fake", "efficientnet-lite0", "minilm", "use-multilingual"])
def test_the_card_of_a_registered_encoder_is_made_without_torch(name: str) -> None:
    _describe_without_torch(name)


def _describe_without_torch(spec: str) -> None:
    code = f"import sys; from encoders.registry import describe; describe({spec!r}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_model_of_the_hub_is_named_by_id_and_revision_not_by_this_machines_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table names its encoder so that another machine can load it."""
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc123"
    tiny_models.tiny_bert(snapshot)
    asked: list[tuple[str, str | None]] = []

    def download(repo: str, *, revision: str | None = None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    card = describe("org/name").card
    assert (card.name, card.spec) == ("bert:org/name", "org/name@abc123")
    assert load(card.spec).card == card
    assert asked == [("org/name", None), ("org/name", "abc123")]
