"""Every family trains as its own encoder runs, and the result loads again: in isthmus and in transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
import transformers

from encoders.dual import DualTower
from encoders.losses import Shard
from encoders.losses.infonce import info_nce
from encoders.losses.siglip import siglip
from encoders.protocol import EncoderOptions
from encoders.registry import load
from encoders.training.models import open_model
from encoders.training.optimiser import parameter_groups
from encoders.training.pairs import PairsModel
from encoders.training.tuning import Tuning, apply_tuning, blocks_of, merge_adapters

FAMILIES = {
    "clip": (tiny_models.tiny_clip, transformers.CLIPModel),
    "siglip": (tiny_models.tiny_siglip, transformers.SiglipModel),
    "siglip2": (tiny_models.tiny_siglip2, transformers.Siglip2Model),
    "chinese_clip": (tiny_models.tiny_chinese_clip, transformers.ChineseCLIPModel),
    "altclip": (tiny_models.tiny_altclip, transformers.AltCLIPModel),
    "metaclip2": (tiny_models.tiny_metaclip2, transformers.MetaClip2Model),
}
WORDS = ["a red circle", "two dogs", "the sea at night"]


def dual(folder: Path) -> Path:
    vit, bert = tiny_models.tiny_vit(folder / "v"), tiny_models.tiny_bert(folder / "b")
    return DualTower.from_backbones(str(vit), str(bert), dim=6, normalise=True).save(folder / "dual")


def resnet_dual(folder: Path) -> Path:
    resnet, bert = tiny_models.tiny_resnet(folder / "r"), tiny_models.tiny_bert(folder / "b")
    return DualTower.from_backbones(str(resnet), str(bert), dim=6).save(folder / "dual")


MAKERS: dict[str, Callable[[Path], Path]] = {
    **{name: lambda folder, make=make: make(folder / "model") for name, (make, _) in FAMILIES.items()},  # type: ignore[misc]
    "dual": dual,
    "resnet": resnet_dual,
}


def batch_for(model: PairsModel, encoder_transform: object) -> tuple[dict[str, torch.Tensor], list[np.ndarray]]:
    import io

    from PIL import Image

    from encoders.images import prepare

    rng = np.random.default_rng(0)
    pictures = []
    for _ in WORDS:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (40, 36, 3), np.uint8)).save(buffer, "PNG")
        pictures.append(prepare(buffer.getvalue(), encoder_transform, "exact"))  # type: ignore[arg-type]
    tokens = {name: torch.from_numpy(array) for name, array in model.model.tokenize(WORDS).items()}
    return {**model.model.pixels(pictures), **tokens}, pictures


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("tuning", ["full", "last:1", "lora:2", "frozen"])
def test_what_trains_is_what_was_asked_and_it_loads_again(name: str, tuning: str, tmp_path: Path) -> None:
    """A frozen layer that moves, or a parameter without a gradient, goes unnoticed until the metrics are bad."""
    directory = MAKERS[name](tmp_path)
    if tuning == "lora:2" and name == "resnet":
        pytest.skip("adapters of convolutions need several stages of equal width, which a tiny ResNet has not")
    torch.manual_seed(0)
    model = PairsModel(open_model(str(directory)))
    batch, pictures = batch_for(model, model.model.transform)
    model.eval()
    encoder = load(str(directory), EncoderOptions(preprocessing="exact"))
    with torch.no_grad():
        pairs = model(batch)
    np.testing.assert_allclose(pairs.image.numpy(), encoder.encode_images(pictures), atol=1e-5)
    np.testing.assert_allclose(pairs.text.numpy(), encoder.encode_texts(WORDS).vectors, atol=1e-5)

    apply_tuning(model.model, "image", Tuning.parse(tuning))
    apply_tuning(model.model, "text", Tuning.parse("full"))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    optimiser = torch.optim.SGD(parameter_groups(model, learning_rate=0.1, weight_decay=0.0), lr=0.1)
    for _ in range(2):  # an adapter's first half gets a gradient only after its second half has moved
        optimiser.zero_grad()
        shard = Shard.whole(model.train()(batch))
        (info_nce(shard) + siglip(shard)).backward()
        trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert not [n for n, p in trains.items() if p.grad is None], "DDP would wait for ever"
        optimiser.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= set(trains)
    backbone = model.model.tower("image").backbone
    image = {f"{n}" for n, p in backbone.named_parameters() if not torch.equal(p, dict_of(before, backbone, model)[n])}
    if tuning == "frozen":
        assert not image
    else:
        assert image
    if tuning == "last:1":
        listed, blocks = blocks_of(backbone)
        assert not [n for n in image if n.startswith(listed) and not n.startswith(f"{listed}.{len(blocks) - 1}.")]
    for n, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[n]) or n not in buffers, f"{n}: statistics of a frozen batch norm moved"

    with torch.no_grad():
        trained = model.eval()(batch)
    for modality in ("image", "text"):
        merge_adapters(model.model.tower(modality))
    out = model.model.save(tmp_path / "out")
    again = load(str(out), EncoderOptions(preprocessing="exact"))
    np.testing.assert_allclose(again.encode_images(pictures), trained.image.numpy(), atol=1e-5)
    np.testing.assert_allclose(again.encode_texts(WORDS).vectors, trained.text.numpy(), atol=1e-5)
    if name in FAMILIES:
        _, found = FAMILIES[name][1].from_pretrained(out, output_loading_info=True)
        assert not found["missing_keys"]


def dict_of(
    before: dict[str, torch.Tensor], backbone: torch.nn.Module, model: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """The earlier values of a backbone's parameters, under its own names."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {n: before[names[id(p)]] for n, p in backbone.named_parameters()}


def test_features_of_a_table_serve_as_the_backbones_own(tmp_path: Path) -> None:
    """Heads that were trained on normalised features must work the same on the backbone's own."""
    model = PairsModel(open_model(str(dual(tmp_path)))).eval()
    batch, pictures = batch_for(model, model.model.transform)
    image, text = (load(str(tmp_path / name)) for name in "vb")
    features = {
        "image_features": torch.from_numpy(image.encode_images(pictures)),
        "text_features": torch.from_numpy(text.encode_texts(WORDS).vectors),
    }
    with torch.no_grad():
        torch.testing.assert_close(model(features).image, model(batch).image, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(features).text, model(batch).text, atol=1e-5, rtol=1e-5)
    part = model.model.frozen_part("image", head_trains=True)
    assert part.fingerprint == image.card.towers[0].fingerprint
    apply_tuning(model.model, "image", Tuning.parse("full"))
    assert model.model.frozen_part("image", head_trains=True) is None


def test_norms_biases_and_the_scale_do_not_decay(tmp_path: Path) -> None:
    model = PairsModel(open_model(str(tiny_models.tiny_clip(tmp_path / "clip"))))
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.1)
    for group in groups:
        for parameter in group["params"]:  # type: ignore[attr-defined]
            assert group["weight_decay"] == (0.1 if parameter.dim() >= 2 else 0.0)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"), [("half", "give frozen"), ("last:0", "give frozen"), ("lora:x", "give frozen")]
)
def test_tunings_that_do_not_exist(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Tuning.parse(text)


def test_a_model_that_was_there_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    from encoders.saving import replacing

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")

    def write() -> None:
        with replacing(tmp_path / "model") as folder:
            (folder / "weights").write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write()
    assert [p.read_text() for p in (tmp_path / "model").iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
