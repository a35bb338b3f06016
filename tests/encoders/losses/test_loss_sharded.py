"""The loss of many processes, and of a batch in chunks, equals that of one process: value and every gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from loss_tools import ALL_TERMS, TinyTowers, cut, make_batch

from encoders.losses.grad_cache import cached_backward, plain_backward
from encoders.losses.weighted import WeightedLoss, parse_term

ROWS = 11


def gradients(towers: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in towers.named_parameters() if p.grad is not None}


def alone(term: str, *, dropout: float = 0.0) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    towers = TinyTowers(dropout)
    loss = WeightedLoss([parse_term(term)], dim=5).double()
    for seed in (1, 2):  # the second step has a filled memory bank
        towers.zero_grad()
        value, pairs = plain_backward(towers, make_batch(ROWS, seed), loss)
        loss.enqueue(pairs)
    return value, gradients(towers)


def one_of_many(rank: int, world: int, folder: str, chunked: bool) -> None:
    """One process: plain or cached, under DDP, with unequal shares of the batch."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    results: dict[str, Any] = {}
    bounds = [0, *torch.linspace(2, ROWS, world).long().tolist()]
    for term in ALL_TERMS:
        torch.manual_seed(0)
        towers = TinyTowers()
        parallel = torch.nn.parallel.DistributedDataParallel(towers)
        loss = WeightedLoss([parse_term(term)], dim=5).double()
        for seed in (1, 2):
            towers.zero_grad()
            mine = cut(make_batch(ROWS, seed), bounds[rank], bounds[rank + 1])
            if chunked:
                pieces = [cut(mine, 0, 1), cut(mine, 1, len(mine["image"]))]
                value, pairs = cached_backward(parallel, pieces, loss, parallel.no_sync)
            else:
                value, pairs = plain_backward(parallel, mine, loss)
            loss.enqueue(pairs)
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        results[term] = (float(total) / world, gradients(towers), loss.state_dict())
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("world", "chunked"),
    [
        (2, False),
        pytest.param(4, False, marks=pytest.mark.slow),
        pytest.param(2, True, marks=pytest.mark.slow),
    ],
)
def test_many_processes_equal_one(world: int, chunked: bool, tmp_path: Path) -> None:
    """Without gathered gradients a sharded loss silently trains another model."""
    torch.multiprocessing.spawn(one_of_many, (world, str(tmp_path), chunked), nprocs=world)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for term in ALL_TERMS:
        value, wanted = alone(term)
        for rank in range(world):
            found_value, found, bank = results[rank][term]
            assert found_value == pytest.approx(value, abs=1e-9), term
            assert found.keys() >= wanted.keys(), term
            for name, gradient in wanted.items():
                torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9, msg=f"{term} {name}")
            for name, tensor in bank.items():
                torch.testing.assert_close(tensor, results[0][term][2][name], msg=f"{term} {name}")


@pytest.mark.parametrize("term", ALL_TERMS)
@pytest.mark.parametrize("chunk", [1, 4, ROWS])
def test_chunks_equal_the_whole_batch(term: str, chunk: int) -> None:
    value, wanted = alone(term)
    torch.manual_seed(0)
    towers = TinyTowers()
    loss = WeightedLoss([parse_term(term)], dim=5).double()
    for seed in (1, 2):
        towers.zero_grad()
        batch = make_batch(ROWS, seed)
        pieces = [cut(batch, start, start + chunk) for start in range(0, ROWS, chunk)]
        found_value, pairs = cached_backward(towers, pieces, loss)
        loss.enqueue(pairs)
    assert found_value == pytest.approx(value, abs=1e-9)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients(towers)[name], gradient, rtol=1e-7, atol=1e-9, msg=name)


def test_the_second_forward_draws_the_same_random_numbers() -> None:
    """If dropout differs between the two forwards, the gradient is that of a model that never existed."""
    torch.manual_seed(0)
    towers = TinyTowers(dropout=0.5)
    seen: list[torch.Tensor] = []
    loss = WeightedLoss([parse_term("infonce")], dim=5).double()

    def forward(batch: dict[str, torch.Tensor]) -> Any:
        pairs = towers(batch)
        seen.append(pairs.image.detach())
        return pairs

    batch = make_batch(9)
    cached_backward(forward, [cut(batch, start, start + 3) for start in (0, 3, 6)], loss)
    first, second, _, first_again, second_again = seen  # the last chunk is forwarded once
    torch.testing.assert_close(first, first_again)
    torch.testing.assert_close(second, second_again)
    assert not torch.equal(first, second)


def test_a_single_chunk_is_forwarded_once() -> None:
    """A batch that fits costs no more than a plain step."""
    towers = TinyTowers()
    loss = WeightedLoss([parse_term("infonce")], dim=5).double()
    calls: list[int] = []

    def forward(batch: dict[str, torch.Tensor]) -> Any:
        calls.append(len(batch["image"]))
        return towers(batch)

    cached_backward(forward, [make_batch(ROWS)], loss)
    assert calls == [ROWS]
