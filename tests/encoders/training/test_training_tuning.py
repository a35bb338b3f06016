"""Which blocks a tuning selects in networks whose blocks are not one flat list; adapters that can be merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
import transformers as tf
from corpora import picture

from encoders.images import prepare
from encoders.losses.grad_cache import plain_backward
from encoders.losses.infonce import info_nce
from encoders.protocol import EncoderOptions
from encoders.registry import load
from encoders.training.models import open_model
from encoders.training.pairs import PairsModel
from encoders.training.tuning import Tuning, apply_tuning, blocks_of, freeze_batch_norm, merge_adapters

WORDS = ["a red circle", "two dogs", "the sea at night"]


def tiny_convnext(directory: Path) -> Path:
    """ConvNeXt whose third stage is longer than its list of stages, as in every real one."""
    torch.manual_seed(0)
    config = tf.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 6, 1], num_stages=4)
    tf.ConvNextModel(config).save_pretrained(directory)
    tf.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875).save_pretrained(directory)
    return directory


def test_the_blocks_of_a_network_of_stages_are_its_stages(tmp_path: Path) -> None:
    """`last:1` of a ConvNeXt used to train a layer of its third stage and all of its fourth; one stage had adapters."""
    model = open_model(f"{tiny_convnext(tmp_path / 'c')}+{tiny_models.tiny_bert(tmp_path / 'b')}", dim=8)
    backbone = model.tower("image").backbone
    name, stages = blocks_of(backbone)
    assert name.endswith("stages")
    assert len(stages) == 4
    apply_tuning(model, "image", Tuning.parse("last:1"))
    trains = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert trains == {
        n for n, _ in backbone.named_parameters() if ".stages.3." in n or n.startswith(("model.layernorm", "layernorm"))
    }
    apply_tuning(model, "image", Tuning.parse("lora:2"))
    adapted = {n.split(".stages.")[1][0] for n, _ in backbone.named_parameters() if "lora_" in n}
    assert adapted == {"0", "1", "2", "3"}


@pytest.mark.parametrize(
    "make", [tiny_models.tiny_vit, tiny_models.tiny_resnet, tiny_convnext, tiny_models.tiny_dinov2]
)
def test_adapters_folded_in_give_the_same_vectors_and_a_plain_model(make: object, tmp_path: Path) -> None:
    """Convolutions are merged unlike linear layers; a saved adapter would be a directory that nothing loads."""
    image = make(tmp_path / "i")  # type: ignore[operator]
    model = PairsModel(open_model(f"{image}+{tiny_models.tiny_bert(tmp_path / 'b')}", dim=8))
    names = set(model.state_dict())
    for modality in ("image", "text"):
        apply_tuning(model.model, modality, Tuning.parse("lora:3"))  # type: ignore[arg-type]
    pixels = [prepare(picture(i), model.model.transform, "exact") for i in range(3)]
    tokens = {n: torch.from_numpy(a) for n, a in model.model.tokenize(WORDS).items()}
    batch = {**model.model.pixels(pixels), **tokens}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    first = model.eval()(batch).image.detach()
    for _ in range(3):
        optimiser.zero_grad()
        plain_backward(model.train(), batch, info_nce)
        optimiser.step()
    with torch.no_grad():
        trained = model.eval()(batch)
        assert (trained.image - first).abs().max() > 1e-3
        for modality in ("image", "text"):
            merge_adapters(model.model.tower(modality))  # type: ignore[arg-type]
        merged = model(batch)
    torch.testing.assert_close(merged.image, trained.image, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(merged.text, trained.text, atol=1e-5, rtol=1e-4)
    assert set(model.state_dict()) == names
    encoder = load(str(model.model.save(tmp_path / "out")), EncoderOptions(preprocessing="exact"))
    np.testing.assert_allclose(encoder.encode_images(pixels), trained.image.numpy(), atol=1e-5)


@pytest.mark.parametrize("tuning", ["full", "last:2", "head", "lora:2"])
def test_batch_norms_stand_still_however_often_training_is_switched_on(tuning: str, tmp_path: Path) -> None:
    """Batch statistics leak the batch's other pictures into a vector, and make cached gradients inexact."""
    spec = f"{tiny_models.tiny_resnet(tmp_path / 'r')}+{tiny_models.tiny_bert(tmp_path / 'b')}"
    model = PairsModel(open_model(spec, dim=8))
    apply_tuning(model.model, "image", Tuning.parse(tuning))
    buffers = {n: b.clone() for n, b in model.named_buffers() if "running" in n or "num_batches" in n}
    assert buffers
    pixels = torch.randn(4, 3, 32, 32)
    whole = [model.train(mode).model.image({"pixel_values": pixels}) for mode in (True, False, True)][2]
    alone = model.model.image({"pixel_values": pixels[:1]})
    torch.testing.assert_close(alone, whole[:1], atol=1e-5, rtol=1e-4)
    for n, buffer in model.named_buffers():
        assert n not in buffers or torch.equal(buffer, buffers[n]), n
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(p.requires_grad for m in norms for p in m.parameters())


def test_freezing_norms_leaves_other_layers_in_training() -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5))
    freeze_batch_norm(network)
    network.train()
    assert not network[0].training
    assert network[1].training


@pytest.mark.parametrize("text", ["last:2", "lora:8", "head", "full", "frozen"])
def test_tunings_read_back(text: str) -> None:
    tuning = Tuning.parse(text)
    assert text == (f"{tuning.mode}:{tuning.amount}" if tuning.amount else tuning.mode)
    assert tuning.touches_backbone == (text not in ("head", "frozen"))
    assert tuning.trains_head == (text != "frozen")


@pytest.mark.parametrize("text", ["", "head:2", "last", "last:-1", "lora:0", "full ", "last:1.5"])
def test_tunings_that_are_misspelt(text: str) -> None:
    with pytest.raises(ValueError, match="give frozen, head, full, last:N or lora:RANK"):
        Tuning.parse(text)


def test_more_blocks_than_there_are(tmp_path: Path) -> None:
    model = open_model(str(tiny_models.tiny_clip(tmp_path / "m")))
    with pytest.raises(ValueError, match=r"text tower: last:3, but it has 2 blocks"):
        apply_tuning(model, "text", Tuning.parse("last:3"))
    with pytest.raises(ValueError, match="no list of blocks"):
        blocks_of(torch.nn.Linear(2, 2))


def test_only_what_leaves_the_backbone_alone_keeps_its_origin(tmp_path: Path) -> None:
    """A tuned backbone that still claims its origin would be given the features of the pretrained one."""
    for tuning, kept in (("head", True), ("frozen", True), ("last:1", False), ("lora:1", False), ("full", False)):
        spec = f"{tiny_models.tiny_vit(tmp_path / 'v')}+{tiny_models.tiny_bert(tmp_path / 'b')}"
        model = open_model(spec, dim=8)
        apply_tuning(model, "image", Tuning.parse(tuning))
        merge_adapters(model.tower("image"))
        again = open_model(str(model.save(tmp_path / "out")))
        assert (again.frozen_part("image", head_trains=True) is not None) == kept, tuning
        assert again.frozen_part("text", head_trains=True) is not None
