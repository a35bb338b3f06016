"""Which parameters decay, how fast each part learns, and when."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders.training.models import open_model
from encoders.training.optimiser import (
    cosine_with_warmup,
    global_norm,
    load_state,
    make_optimiser,
    parameter_groups,
    state_of,
)
from encoders.training.pairs import PairsModel
from encoders.training.tuning import Tuning, apply_tuning


@pytest.mark.parametrize("make", [tiny_models.tiny_clip, tiny_models.tiny_siglip, tiny_models.tiny_altclip, None])
def test_each_parameter_that_trains_is_in_one_group_and_scalars_do_not_decay(make: object, tmp_path: Path) -> None:
    """A decaying temperature is pulled to 1; in two groups it makes AdamW refuse, in none it never learns."""
    pair = f"{tiny_models.tiny_vit(tmp_path / 'v')}+{tiny_models.tiny_bert(tmp_path / 'b')}"
    spec = pair if make is None else str(make(tmp_path / "m"))  # type: ignore[operator]
    model = PairsModel(open_model(spec, dim=8, bias=True), teacher_image_dim=5)
    apply_tuning(model.model, "image", Tuning.parse("last:1"))
    groups = parameter_groups(model, learning_rate=0.5, weight_decay=0.1, head_factor=10.0)
    where = {id(p): group for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    counted = sum(len(group["params"]) for group in groups)  # type: ignore[arg-type]
    trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert counted == len(where) == len(trains)
    for name, parameter in trains.items():
        plain = name.endswith("bias") or "norm" in name.lower() or "scale" in name or parameter.dim() < 2
        assert where[id(parameter)]["weight_decay"] == (0.0 if plain else 0.1), name
        head = "backbone" not in name and "vision_model" not in name and "text_model" not in name
        assert where[id(parameter)]["lr"] == (5.0 if head else 0.5), name
    assert "project_image.weight" in trains
    make_optimiser(groups)


def test_decay_shrinks_matrices_and_nothing_else() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser = make_optimiser(parameter_groups(model, learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if name == "0.weight" else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)


def test_nothing_to_train_is_said(tmp_path: Path) -> None:
    """Only the logit scale would train, for hours, to no effect."""
    model = PairsModel(open_model(str(tiny_models.tiny_clip(tmp_path / "m"))))
    for modality in ("image", "text"):
        apply_tuning(model.model, modality, Tuning.parse("frozen"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing trains"):
        parameter_groups(model, learning_rate=1.0, weight_decay=0.0)


@given(warmup=st.integers(0, 50), rest=st.integers(1, 200))
def test_the_rate_rises_to_one_then_falls_and_never_is_none(warmup: int, rest: int) -> None:
    total = warmup + rest
    rates = [cosine_with_warmup(step, warmup_steps=warmup, total_steps=total) for step in range(total)]
    assert all(0.0 < rate <= 1.0 for rate in rates)
    assert rates[:warmup] == [(step + 1) / warmup for step in range(warmup)]
    assert rates[warmup] == 1.0
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * (rest - 1) / rest)))
    assert cosine_with_warmup(total + 9, warmup_steps=warmup, total_steps=total) == pytest.approx(0.0)


def test_a_run_shorter_than_its_warm_up_still_learns() -> None:
    rates = [cosine_with_warmup(step, warmup_steps=50, total_steps=5) for step in range(5)]
    assert rates == [0.02, 0.04, 0.06, 0.08, 0.1]


def test_the_norm_of_all_gradients() -> None:
    layers = [torch.nn.Linear(2, 2, bias=False) for _ in range(3)]
    layers[0].weight.grad, layers[1].weight.grad = torch.full((2, 2), 3.0), torch.full((2, 2), 4.0)
    assert global_norm(layer.weight for layer in layers) == pytest.approx(10.0)
    assert global_norm([layers[2].weight]) == 0.0


def test_one_kernel_steps_as_the_plain_optimiser_does() -> None:
    """A fast step that drifts from AdamW would only show as a slightly worse model."""
    models = [torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    groups = [parameter_groups(model, learning_rate=0.01, weight_decay=0.3) for model in models]
    fast, plain = make_optimiser(groups[0]), torch.optim.AdamW(groups[1], betas=(0.9, 0.98), eps=1e-6)
    assert fast.param_groups[0]["fused"]
    for step in range(20):
        for optimiser, model in zip((fast, plain), models, strict=True):
            torch.manual_seed(step)
            optimiser.zero_grad()
            model(torch.randn(4, 5)).pow(3).sum().backward()
            optimiser.step()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_state_of_another_way_to_step_is_taken_up() -> None:
    """A run that began sharded, or without the fused kernel, goes on, with the optimiser step of this process."""
    model = torch.nn.Linear(3, 3)
    optimiser = make_optimiser(parameter_groups(model, learning_rate=0.1, weight_decay=0.5))
    older = torch.optim.AdamW(parameter_groups(model, learning_rate=0.2, weight_decay=0.5))
    model(torch.ones(1, 3)).sum().backward()
    older.step()
    load_state(optimiser, older.state_dict())
    assert [group["fused"] for group in state_of(optimiser)["param_groups"]] == [None, None]
    assert all(group["fused"] for group in optimiser.param_groups)
    assert [group["lr"] for group in optimiser.param_groups] == [0.2, 0.2]
    assert float(optimiser.state[model.weight]["step"]) == 1.0
    optimiser.step()
    assert float(optimiser.state[model.weight]["step"]) == 2.0
