"""A saved dual tower must load as the same encoder, from its directory alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from corpora import picture

from encoders.dual import DualTower
from encoders.images import prepare
from encoders.registry import describe, load

TEXTS = ["a dog", "一只狗", "a quick brown fox"]
PICTURES = [picture(i) for i in range(3)]
PAIRS = {
    "vit + bert": (tiny_models.tiny_vit, tiny_models.tiny_bert),
    "resnet + modernbert": (tiny_models.tiny_resnet, tiny_models.tiny_modernbert),
    "dinov2 + use": (tiny_models.tiny_dinov2, "use-multilingual"),
    "efficientnet + bert": ("efficientnet-lite0", tiny_models.tiny_bert),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_saved_dual_tower_gives_the_same_vectors(name: str, head: str, tmp_path: Path) -> None:
    specs = [
        maker if isinstance(maker, str) else str(maker(tmp_path / f"backbone{i}"))
        for i, maker in enumerate(PAIRS[name])
    ]
    torch.manual_seed(1)
    model = DualTower.from_backbones(*specs, dim=16, head=head).eval()  # type: ignore[arg-type]
    model.save(tmp_path / "dual")
    again = DualTower.from_directory(tmp_path / "dual").eval()
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], tensor)

    encoder, description = load(str(tmp_path / "dual")), describe(str(tmp_path / "dual"))
    assert encoder.card == description.card
    assert encoder.card.towers[0].space == encoder.card.towers[1].space
    transform = description.image_transform
    assert transform is not None
    pixels = [prepare(data, transform) for data in PICTURES]
    image, text = encoder.encode_images(pixels), encoder.encode_texts(TEXTS).vectors
    assert image.shape == text.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1.0, atol=1e-5)

    with torch.inference_mode():
        direct = model.image_features(torch.from_numpy(transform.normalise(pixels)))
    np.testing.assert_allclose(image, torch.nn.functional.normalize(direct, dim=-1).numpy(), atol=1e-5)


def test_the_backbone_keeps_its_pretrained_weights(tmp_path: Path) -> None:
    """A dual tower that started from random weights would train badly, for no visible reason."""
    directory = tiny_models.tiny_bert(tmp_path / "bert")
    model = DualTower.from_backbones(str(tiny_models.tiny_vit(tmp_path / "vit")), str(directory), dim=8).eval()
    single = load(str(directory)).encode_texts(TEXTS).vectors
    from encoders.families.loading import load_tokenizer

    batch = dict(load_tokenizer(directory)(TEXTS, padding=True, return_tensors="pt"))
    with torch.inference_mode():
        features = torch.nn.functional.normalize(model.text_backbone(batch), dim=-1)
    np.testing.assert_allclose(features.numpy(), single, atol=1e-5)
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "pooler" in name], "an unused pooler would stop DDP"
    assert "logit_scale" in names


def test_a_tower_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    bert, vit = str(tiny_models.tiny_bert(tmp_path / "b")), str(tiny_models.tiny_vit(tmp_path / "v"))
    with pytest.raises(ValueError, match="bert is not a vision model"):
        DualTower.from_backbones(bert, bert)
    with pytest.raises(ValueError, match="vit is not a text model"):
        DualTower.from_backbones(vit, vit)


def test_a_dual_tower_refuses_another_multilingual_package_than_its_own(tmp_path: Path) -> None:
    """The heads were trained on that package's features; on other features their vectors mean nothing."""
    vit = str(tiny_models.tiny_vit(tmp_path / "vit"))
    folder = DualTower.from_backbones(vit, "use-multilingual", dim=8).save(tmp_path / "dual")
    config = json.loads((folder / "isthmus_dual.json").read_text())
    config["text"]["weights"] = "0" * 16
    (folder / "isthmus_dual.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="was trained on use-multilingual with weights 0000"):
        load(str(folder))


def test_a_dual_tower_is_float32_whatever_its_backbones_were_stored_in(tmp_path: Path) -> None:
    """Half-precision parameters would be trained in half precision and lose small gradients."""
    vit, bert = tiny_models.tiny_vit(tmp_path / "v"), tiny_models.tiny_bert(tmp_path / "b")
    tiny_models.halve(vit)
    model = DualTower.from_backbones(str(vit), str(bert), dim=8)
    again = DualTower.from_directory(model.save(tmp_path / "dual"))
    assert {p.dtype for m in (model, again) for p in m.parameters()} == {torch.float32}
