"""Each loss against its formula written out in loops; worked numbers; gradients in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from loss_tools import ALL_TERMS, TinyTowers, make_batch

from encoders.losses import Pairs, Shard
from encoders.losses.hardness import hardness_weighted
from encoders.losses.infonce import info_nce
from encoders.losses.memory_bank import MemoryBank
from encoders.losses.pairs import not_negatives
from encoders.losses.top_k import top_k
from encoders.losses.weighted import WeightedLoss, parse_term


def pairs_of(n: int = 7, seed: int = 3) -> Pairs:
    torch.manual_seed(seed)
    return TinyTowers()(make_batch(n, seed))


def excluded(pairs: Pairs, i: int, j: int) -> bool:
    assert pairs.image_ids is not None
    assert pairs.text_ids is not None
    return i != j and bool(pairs.image_ids[i] == pairs.image_ids[j] or pairs.text_ids[i] == pairs.text_ids[j])


def directions(pairs: Pairs) -> list[torch.Tensor]:
    return [pairs.image @ pairs.text.T, pairs.text @ pairs.image.T]


def naive(name: str, pairs: Pairs) -> torch.Tensor:
    """The formulas, one row at a time."""
    n, s = len(pairs), pairs.scale
    total = torch.zeros((), dtype=torch.float64)
    if name == "siglip":
        for i in range(n):
            for j in range(n):
                if not excluded(pairs, i, j):
                    logit = s * (pairs.image[i] @ pairs.text[j]) + pairs.bias
                    total = total - torch.log(torch.sigmoid(logit if i == j else -logit))
        return total / n
    if name == "distill_l2":
        for student, teacher in (
            (pairs.student_image, pairs.teacher_image),
            (pairs.student_text, pairs.teacher_text),
        ):
            for i in range(n):
                total = total + ((student[i] / student[i].norm() - teacher[i] / teacher[i].norm()) ** 2).sum() / 2
        return total / n
    for way, cosines in enumerate(directions(pairs)):
        for i in range(n):
            others = [j for j in range(n) if j != i and not excluded(pairs, i, j)]
            own = torch.exp(s * cosines[i, i])
            if name in ("infonce", "memory_bank"):
                total = total - torch.log(own / (own + sum(torch.exp(s * cosines[i, j]) for j in others)))
            elif name == "top_k":
                hardest = sorted(others, key=lambda j: float(-cosines[i, j].detach()))[:3]
                total = total - torch.log(own / (own + sum(torch.exp(s * cosines[i, j]) for j in hardest)))
            elif name == "max_of_hinges":
                hinges = [0.3 - cosines[i, i] + cosines[i, j] for j in others]
                total = total + 2 * max([h for h in hinges if h > 0], default=torch.zeros(()))
            elif name == "hardness":
                weights = [math.exp(0.7 * float(cosines[i, j].detach())) for j in others]
                mean = sum(weights) / max(len(weights), 1)
                pushed = sum(w / mean * torch.exp(s * cosines[i, j]) for w, j in zip(weights, others, strict=True))
                total = total - torch.log(own / (own + pushed))
            else:
                relation = (("image", "text"), ("text", "text"))["text" in name]
                rows, columns = relation if way == 0 else relation[::-1]
                unit = {
                    "image": torch.nn.functional.normalize(pairs.teacher_image, dim=1),
                    "text": torch.nn.functional.normalize(pairs.teacher_text, dim=1),
                }
                kept = [i, *others]
                t = torch.stack([unit[rows][i] @ unit[columns][j] for j in kept]) / 0.2
                student = torch.stack([s * cosines[i, j] for j in kept])
                p, q = torch.softmax(t, 0), torch.softmax(student, 0)
                total = total + (p * (p / q).log()).sum()
    return total / (2 * n)


@pytest.mark.parametrize("term", ALL_TERMS)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_each_loss_is_its_formula_and_so_is_its_gradient(term: str, n: int) -> None:
    name = term.split(":")[0]
    name = name + ("_text" if "relation=text" in term else "")
    if n == 1 and name == "hardness":
        name = "infonce"  # no negative to weight
    torch.manual_seed(3)
    towers, batch = TinyTowers(), make_batch(n, 3)
    found = WeightedLoss([parse_term(term)], dim=5).double()(Shard.whole(towers(batch)))
    gradients = torch.autograd.grad(found, list(towers.parameters()), allow_unused=True)
    wanted = naive(name, towers(batch))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    if not wanted.requires_grad:
        return
    oracle = torch.autograd.grad(wanted, list(towers.parameters()), allow_unused=True)
    for mine, theirs in zip(gradients, oracle, strict=True):
        if mine is None or theirs is None:
            given = mine if mine is not None else theirs
            assert given is None or float(given.abs().max()) < 1e-9
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


def test_worked_numbers() -> None:
    a, b = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=0)) == pytest.approx(0.974631846, abs=1e-9)
    cosines = torch.tensor([[0.9, 0.2], [0.3, 0.8]], dtype=torch.float64)
    # With image = identity, the cosines are the captions themselves.
    pairs = Pairs(image=torch.eye(2, dtype=torch.float64), text=cosines.T, scale=torch.tensor(10.0))
    rows = torch.nn.functional.cross_entropy(cosines * 10, torch.arange(2), reduction="none")
    assert float(rows.sum()) == pytest.approx(0.007626815, abs=1e-9)
    assert float(rows.mean()) == pytest.approx(0.003813407, abs=1e-9)
    assert float(info_nce(Shard.whole(pairs))) == pytest.approx(0.003144546, abs=1e-9)


def test_all_negatives_as_the_hardest_are_infonce() -> None:
    shard = Shard.whole(pairs_of(7))
    torch.testing.assert_close(top_k(6)(shard), info_nce(shard))
    torch.testing.assert_close(hardness_weighted(0.0)(shard), info_nce(shard))


def test_captions_of_one_picture_and_equal_captions_are_no_negatives() -> None:
    """A picture that is pushed away from its own second caption unlearns what the first one taught."""
    pairs = pairs_of(7)
    marked = not_negatives(Shard.whole(pairs))
    for i in range(7):
        for j in range(7):
            assert bool(marked[i, j]) == excluded(pairs, i, j)
    assert marked.any()


@pytest.mark.parametrize("term", [t for t in ALL_TERMS if not t.startswith("memory")])
def test_a_loss_is_the_sum_over_blocks_of_rows(term: str) -> None:
    shard = Shard.whole(pairs_of(7))
    loss = WeightedLoss([parse_term(term)], dim=5).double()
    torch.testing.assert_close(sum(loss(block) for block in shard.blocks(3)), loss(shard))


def test_the_bank_holds_the_last_pairs_in_order_and_masks_its_own() -> None:
    """The reference code treats a full queue as empty, overwrites the tail that wraps, and enqueues before the loss."""
    bank = MemoryBank(size=5, dim=5).double()
    history: list[Pairs] = []
    for seed in range(4):
        pairs = pairs_of(3, seed)
        found = bank(Shard.whole(pairs))
        past = [(p, i) for p in history for i in range(3)][-5:]
        total = torch.zeros((), dtype=torch.float64)
        for way, cosines in enumerate(directions(pairs)):
            for i in range(3):
                logits = [pairs.scale * cosines[i, i]]
                logits += [pairs.scale * cosines[i, j] for j in range(3) if j != i and not excluded(pairs, i, j)]
                mine = pairs.image[i] if way == 0 else pairs.text[i]
                for p, q in past:
                    if p.image_ids[q] != pairs.image_ids[i] and p.text_ids[q] != pairs.text_ids[i]:
                        logits.append(pairs.scale * (mine @ (p.text[q] if way == 0 else p.image[q])))
                total = total - torch.log_softmax(torch.stack(logits), 0)[0]
        torch.testing.assert_close(found, total / 6)
        bank.enqueue(pairs)
        history.append(Pairs(**{**vars(pairs), "image": pairs.image.detach(), "text": pairs.text.detach()}))
    assert int(bank.filled) == 5


def test_the_bank_waits_for_its_warm_up_and_survives_a_checkpoint() -> None:
    bank = MemoryBank(size=8, dim=5, warmup_steps=2).double()
    for seed in range(2):
        shard = Shard.whole(pairs_of(3, seed))
        torch.testing.assert_close(bank(shard), info_nce(shard))
        bank.enqueue(shard.pairs)
    shard = Shard.whole(pairs_of(3, 9))
    distinct = Pairs(**{**vars(shard.pairs), "image_ids": torch.arange(90, 93), "text_ids": torch.arange(90, 93)})
    assert bank(Shard.whole(distinct)).item() > info_nce(Shard.whole(distinct)).item()
    other = MemoryBank(size=8, dim=5, warmup_steps=2).double()
    other.load_state_dict(bank.state_dict())
    torch.testing.assert_close(other(shard), bank(shard))


def test_a_batch_larger_than_the_bank_leaves_its_last_pairs() -> None:
    bank, pairs = MemoryBank(size=4, dim=5).double(), pairs_of(7)
    bank.enqueue(pairs)
    torch.testing.assert_close(bank.images, pairs.image[3:].detach())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nce", "unknown"),
        ("top_k", "needs k"),
        ("top_k:k=x", "not a int"),
        ("top_k:m=3", "takes weight, k"),
        ("infonce:weight=0", "more than 0"),
        ("top_k:k=0", "at least 1"),
        ("distill_kl:relation=both", "give one of"),
        ("distill_kl:temperature=0", "more than 0"),
        ("memory_bank:size=0", "size of 1"),
        ("max_of_hinges:margin=0", "more than 0"),
        ("hardness:beta=-1", "0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WeightedLoss([parse_term(text)], dim=4)


def test_distillation_without_a_teacher_or_with_one_of_another_size_is_refused() -> None:
    pairs = pairs_of(3)
    bare = Pairs(image=pairs.image, text=pairs.text, scale=pairs.scale)
    for name in ("distill_l2", "distill_kl"):
        with pytest.raises(ValueError, match="teacher"):
            WeightedLoss([parse_term(name)], dim=5)(Shard.whole(bare))
    unprojected = Pairs(**{**vars(pairs), "student_image": None, "student_text": None})
    with pytest.raises(ValueError, match="5 dimensions, the teacher's 4"):
        WeightedLoss([parse_term("distill_l2")], dim=5)(Shard.whole(unprojected))
