"""A model that is split over processes learns what a whole one learns, and is saved completely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.tensor import DTensor
from training_tools import vit_and_bert

from encoders.losses.grad_cache import cached_backward, plain_backward
from encoders.losses.weighted import WeightedLoss, parse_term
from encoders.training.optimiser import make_optimiser, parameter_groups
from encoders.training.pairs import cut_batch
from pipelines.train.finetuning.building import build
from pipelines.train.finetuning.parallel import Sharding, share_model, training_bytes
from pipelines.train.finetuning.train_settings import ModelSettings

ROWS, STEPS = 11, 3
# With 3 rows per chunk: 3 chunks here, 2 there.
SHARES = (0, 7, ROWS)
CLIP_AT = 0.5
Result = dict[str, Any]
Segments = list[tuple[Sharding, int]]
WAYS: dict[str, tuple[Segments, int | None]] = {
    "plain": ([("fsdp", STEPS)], None),
    "chunks": ([("fsdp", STEPS)], 3),
    "copies in chunks": ([("ddp", STEPS)], 3),
    # On CPUs `auto` is a copy per process.
    "there and back": ([("ddp", 1), ("fsdp", 1), ("auto", STEPS - 2)], None),
}


def models(folder: Path) -> dict[str, tuple[ModelSettings, str]]:
    """What is trained, with which loss.

    Whole towers; last blocks beside adapters; heads on features, whose backbones never run; a scale and a bias of shape
    (1,).
    """
    clip, siglip = str(tiny_models.tiny_clip(folder / "clip")), str(tiny_models.tiny_siglip(folder / "siglip"))
    dual, whole = vit_and_bert(folder), {"image_tuning": "full", "text_tuning": "full"}
    return {
        "clip": (ModelSettings(spec=clip, **whole), "memory_bank:size=16"),
        "dual": (ModelSettings(spec=dual, dim=8, **whole), "infonce"),
        "dual-parts": (ModelSettings(spec=dual, dim=8, image_tuning="last:1", text_tuning="lora:2"), "infonce"),
        "heads": (ModelSettings(spec=dual, dim=8, image_tuning="head", text_tuning="head"), "infonce"),
        "siglip": (ModelSettings(spec=siglip, gradient_checkpointing=True, **whole), "siglip"),
    }


def batch_of(model: Any, step: int, *, features: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = {"image_ids": torch.arange(ROWS) + 100 * step, "text_ids": torch.arange(ROWS) // 2 + 100 * step}
    if features:
        return ids | {f"{name}_features": torch.randn(ROWS, 32, generator=generator) for name in ("image", "text")}
    tokens = model.tokenize([f"{chr(97 + i)} thing {chr(97 + step)}" for i in range(ROWS)])
    pixels = {"pixel_values": torch.randn(ROWS, 3, 32, 32, generator=generator)}
    return pixels | {name: torch.from_numpy(array) for name, array in tokens.items()} | ids


def train(
    settings: ModelSettings, term: str, segments: Segments, chunk: int | None, rank: int = 0, world: int = 1
) -> Result:
    """Some steps one way, then some another way from the saved state, as `Process` runs them."""
    found: Result = {"losses": [], "norms": [], "local": {}}
    saved: Result | None = None
    step = 0
    for way, steps in segments:
        model = build(settings)
        if saved is not None:
            model.load_state_dict(saved["model"])
        parallel = share_model(model, torch.device("cpu"), world, way)
        optimiser = make_optimiser(parameter_groups(model, learning_rate=1e-3, weight_decay=0.1))
        loss = WeightedLoss([parse_term(term)], dim=model.model.dim)
        if saved is not None:
            parallel.load_optimiser(optimiser, saved["optimiser"])
            loss.load_state_dict(saved["loss"])
        # Without dropout, which no two processes draw alike; but in training mode, for gradient checkpointing.
        parallel.forward.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for _ in range(steps):
            optimiser.zero_grad(set_to_none=True)
            everything = batch_of(model.model, step, features=settings.image_tuning == "head")
            bounds = SHARES if world > 1 else (0, ROWS)
            mine = {name: tensor[bounds[rank] : bounds[rank + 1]] for name, tensor in everything.items()}
            if chunk is None:
                value, pairs = plain_backward(parallel.forward, mine, loss)
            else:
                chunks = parallel.level(cut_batch(mine, chunk))
                value, pairs = cached_backward(parallel.forward, chunks, loss, parallel.no_sync)
            found["losses"].append(parallel.mean(value))
            found["norms"].append(parallel.clip_gradient(CLIP_AT))
            optimiser.step()
            loss.enqueue(pairs)
            step += 1
        held = [*model.parameters(), *(s["exp_avg"] for s in optimiser.state.values())]
        found["local"][way] = sum(t.to_local().numel() if isinstance(t, DTensor) else t.numel() for t in held)
        found["whole"] = sum(t.numel() for t in held)
        with torch.no_grad():
            vectors = model(mine).image
        found["vectors"] = parallel.gather(vectors)
        found["finite"] = parallel.weights_are_finite()
        saved = {"model": parallel.model_state(), "optimiser": parallel.optimiser_state(optimiser)}
        saved["loss"] = loss.state_dict()
        found["saved"] = saved
        if world > 1 and len(segments) > 1:
            # Rank 0 saves, all ranks load.
            box = [saved if rank == 0 else None]
            dist.broadcast_object_list(box)
            saved = box[0]
    return found


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    given = torch.load(f"{folder}/models.pt", weights_only=False)
    results = {
        (name, way): train(settings, term, segments, chunk, rank, 2)
        for name, (settings, term) in given.items()
        for way, (segments, chunk) in WAYS.items()
    }
    settings, _ = given["clip"]
    spoilt = share_model(build(settings), torch.device("cpu"), 2, "fsdp")
    if rank == 1:
        with torch.no_grad():
            spoilt.trained[-1].to_local().fill_(float("nan"))
    torch.save((results, spoilt.weights_are_finite()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


Found = tuple[dict[str, tuple[ModelSettings, str]], list[tuple[dict[tuple[str, str], Result], bool]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("two")
    given = models(folder)
    torch.save(given, folder / "models.pt")
    torch.multiprocessing.spawn(one_of_two, (str(folder),), nprocs=2)
    return given, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def is_noise(name: str) -> bool:
    """Whether the gradient is 0 up to rounding, which Adam turns into full-size steps: the key biases of attention."""
    return name.endswith(("k_proj.bias", "key.bias", "in_proj_bias"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["clip", "dual", "dual-parts", "heads", "siglip"])
@pytest.mark.slow
def test_a_sharded_model_learns_as_a_whole_one(found: Found, name: str, way: str) -> None:
    """Losses, gradient norm, weights and Adam's state, whichever way the checkpoint was written."""
    given, ranks = found
    wanted = train(*given[name], [("auto", STEPS)], WAYS[way][1])
    for results, _ in ranks:
        assert results[name, way]["losses"] == pytest.approx(wanted["losses"], rel=1e-5)
        assert results[name, way]["norms"] == pytest.approx(wanted["norms"], rel=1e-4)
        torch.testing.assert_close(results[name, way]["vectors"], wanted["vectors"], rtol=1e-4, atol=1e-5)
        assert results[name, way]["finite"]
    assert max(wanted["norms"]) > CLIP_AT, "or nothing was clipped"
    saved = ranks[0][0][name, way]["saved"]
    assert saved["model"].keys() == wanted["saved"]["model"].keys()
    for key, tensor in wanted["saved"]["model"].items():
        if not is_noise(key):
            torch.testing.assert_close(saved["model"][key], tensor, rtol=1e-5, atol=1e-5, msg=key)
    assert saved["optimiser"]["param_groups"] == wanted["saved"]["optimiser"]["param_groups"]
    state = wanted["saved"]["optimiser"]["state"]
    assert saved["optimiser"]["state"].keys() == state.keys()
    for i, entry in state.items():
        for key, tensor in entry.items():
            torch.testing.assert_close(saved["optimiser"]["state"][i][key], tensor, rtol=1e-3, atol=1e-5, msg=key)
    torch.testing.assert_close(saved["loss"], wanted["saved"]["loss"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "dual", "dual-parts", "heads", "siglip"])
@pytest.mark.slow
def test_each_process_holds_a_half(found: Found, name: str) -> None:
    """Parameters and Adam's moments: a model that is merely copied would pass every other test here."""
    results = [ranks[name, "there and back"] for ranks, _ in found[1]]
    for result in results:
        assert result["local"]["fsdp"] == pytest.approx(result["whole"] / 2, rel=0.1)
        assert result["local"]["ddp"] == result["local"]["auto"] == result["whole"]


@pytest.mark.slow
def test_weights_that_are_no_numbers_in_one_part_stop_all(found: Found) -> None:
    """The other process would wait for ever."""
    assert [finite for _, finite in found[1]] == [False, False]


def test_what_training_takes_counts_adam_only_where_something_trains() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 5, bias=False))
    model[0].requires_grad_(False)
    assert training_bytes(model) == 100 * 4 + 50 * 16
