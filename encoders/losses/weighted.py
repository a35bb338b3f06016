"""A weighted sum of losses from a config: `infonce`, `top_k:weight=0.5,k=16`, `memory_bank:size=4096`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from encoders.losses.distill_kl import distill_kl
from encoders.losses.distill_l2 import distill_l2
from encoders.losses.hardness import hardness_weighted
from encoders.losses.infonce import info_nce
from encoders.losses.memory_bank import MemoryBank
from encoders.losses.pairs import Loss, Pairs, Shard
from encoders.losses.siglip import siglip
from encoders.losses.top_k import top_k
from encoders.losses.vse import max_of_hinges


@dataclass(frozen=True)
class LossTerm:
    """One loss of the sum: its name (a key of `OPTIONS`), its weight (positive) and its options."""

    name: str
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss compares the vectors with a teacher's."""
        return self.name.startswith("distill")


# Options of each loss, with their types.
OPTIONS: dict[str, dict[str, type]] = {
    "infonce": {},
    "siglip": {},
    "top_k": {"k": int},
    "max_of_hinges": {"margin": float},
    "hardness": {"beta": float},
    "memory_bank": {"size": int, "warmup_steps": int},
    "distill_l2": {},
    "distill_kl": {"temperature": float, "relation": str},
}
_REQUIRED = {"top_k": "k", "hardness": "beta", "memory_bank": "size"}
_MAKERS: dict[str, Callable[..., Loss]] = {
    "infonce": lambda: info_nce,
    "siglip": lambda: siglip,
    "top_k": top_k,
    "max_of_hinges": max_of_hinges,
    "hardness": hardness_weighted,
    "distill_l2": lambda: distill_l2,
    "distill_kl": distill_kl,
}


def parse_term(text: str) -> LossTerm:
    """A term from `NAME` or `NAME:weight=W,OPTION=VALUE,…`.

    Raises:
        ValueError: an unknown name or option, a value of the wrong type, or a required option that is missing.

    >>> parse_term("top_k:weight=0.5,k=16")
    LossTerm(name='top_k', weight=0.5, options={'k': 16})
    """
    name, _, rest = text.partition(":")
    if name not in OPTIONS:
        raise ValueError(f"loss {name!r}: unknown; give one of {', '.join(OPTIONS)}")
    kinds = {"weight": float, **OPTIONS[name]}
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in kinds:
            raise ValueError(f"loss {text!r}: option {key!r}: {name} takes {', '.join(kinds)}, as OPTION=VALUE")
        try:
            values[key] = kinds[key](value)
        except ValueError as error:
            raise ValueError(f"loss {text!r}: {key}={value}: not a {kinds[key].__name__}") from error
    if (needed := _REQUIRED.get(name)) is not None and needed not in values:
        raise ValueError(f"loss {text!r}: needs {needed}=…")
    weight = values.pop("weight", 1.0)
    if weight <= 0:
        raise ValueError(f"loss {text!r}: weight {weight}: give more than 0")
    return LossTerm(name, weight, values)


class WeightedLoss(nn.Module):
    """Σ weight · loss. A memory bank is a submodule, so that `state_dict` holds its queue."""

    def __init__(self, terms: Sequence[LossTerm], dim: int) -> None:
        """Make the losses.

        Args:
            terms: the losses to sum, at least one.
            dim: dimension of the vectors.

        Raises:
            ValueError: there is no term, or a loss refuses its options.
        """
        super().__init__()
        if not terms:
            raise ValueError("losses: none given; give at least one, for example infonce")
        self.terms = tuple(terms)
        self.banks = nn.ModuleDict()
        self._losses: list[Loss] = []
        for i, term in enumerate(terms):
            if term.name == "memory_bank":
                self.banks[str(i)] = MemoryBank(dim=dim, **term.options)
                self._losses.append(self.banks[str(i)])
            else:
                self._losses.append(_MAKERS[term.name](**term.options))

    def forward(self, shard: Shard) -> torch.Tensor:
        """The weighted sum, a scalar."""
        total = shard.pairs.image.new_zeros(())
        for term, loss in zip(self.terms, self._losses, strict=True):
            total = total + term.weight * loss(shard)
        return total

    def enqueue(self, pairs: Pairs) -> None:
        """Put the pairs of all processes into the memory banks; call it once per step, after the loss."""
        for bank in self.banks.values():
            assert isinstance(bank, MemoryBank)
            bank.enqueue(pairs)
