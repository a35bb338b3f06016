"""Distillation of similarities: the student learns the teacher's similarities within the batch.

    L = 1/2n Σᵢ [ KL( softmaxⱼ(Tᵢⱼ/τ) ‖ softmaxⱼ(s·⟨imageᵢ, textⱼ⟩) )
                + KL( softmaxⱼ(Tⱼᵢ/τ) ‖ softmaxⱼ(s·⟨textᵢ, imageⱼ⟩) ) ]

with the teacher's cosines T (n, n), its temperature τ, and the student's vectors (n, dim). `relation` selects the
cosines: `cross` = ⟨image, text⟩ of a two-tower teacher; `text` = ⟨text, text⟩ and `image` = ⟨image, image⟩ of a single
tower, which soften the labels by the similarity of the captions (or pictures). Interactive and contrastive-relational
distillation of CLIP-KD, arXiv:2307.12732; `text` as in SoftCLIP, arXiv:2303.17561.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn.functional import log_softmax, normalize, softmax

from encoders.losses.pairs import Shard, both_ways, not_negatives

Relation = Literal["cross", "text", "image"]
_RELATIONS = {"cross": ("image", "text"), "text": ("text", "text"), "image": ("image", "image")}


def distill_kl(temperature: float = 0.05, relation: Relation = "cross") -> Callable[[Shard], torch.Tensor]:
    """The loss for a teacher's temperature τ and a relation.

    Raises:
        ValueError: the temperature is not positive, or the relation is unknown.
    """
    if temperature <= 0:
        raise ValueError(f"distill_kl: temperature {temperature}: give more than 0")
    if relation not in _RELATIONS:
        raise ValueError(f"distill_kl: relation {relation!r}: give one of {', '.join(_RELATIONS)}")
    rows, columns = _RELATIONS[relation]

    def loss(shard: Shard) -> torch.Tensor:
        masked = not_negatives(shard)
        teacher = (_cosines(shard, rows, columns), _cosines(shard, columns, rows))
        total = shard.pairs.image.new_zeros(())
        for cosines, wanted in zip(both_ways(shard), teacher, strict=True):
            total = total + _divergence(wanted / temperature, cosines * shard.pairs.scale, masked)
        return shard.mean(total / 2)

    return loss


def _cosines(shard: Shard, rows: str, columns: str) -> torch.Tensor:
    """The teacher's cosines (rows, n) of the local rows."""
    vectors = {"image": shard.pairs.teacher_image, "text": shard.pairs.teacher_text}
    mine, theirs = vectors[rows], vectors[columns]
    if mine is None or theirs is None:
        missing = rows if mine is None else columns
        raise ValueError(f"distill_kl: the teacher gives no {missing} vectors; give another relation or teacher")
    local = mine[shard.first : shard.first + shard.rows]
    return normalize(local, dim=1) @ normalize(theirs, dim=1).T


def _divergence(teacher: torch.Tensor, student: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student) of two sets of logits (rows, n), summed over the rows."""
    wanted = softmax(teacher.masked_fill(masked, float("-inf")), dim=1)
    found = log_softmax(student.masked_fill(masked, float("-inf")), dim=1)
    # 0 · log 0 counts as 0, and the −∞ of a masked entry must not be multiplied by its weight of 0.
    return (wanted * (wanted.clamp(min=1e-30).log() - found).masked_fill(masked, 0.0)).sum()
