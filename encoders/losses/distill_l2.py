"""Distillation of vectors: the student's normalised vectors move towards the teacher's.

    L = 1/n Σᵢ mean over towers ‖ sᵢ/‖sᵢ‖ − tᵢ/‖tᵢ‖ ‖²   ( = 2 − 2·cos )

with student vectors s (n, teacher dim), projected if the dimensions differ, and teacher vectors t (n, teacher dim). It
is the squared distance, not `mse_loss`, which would divide by the dimension. Feature distillation of CLIP-KD, Yang et
al., arXiv:2307.12732.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from encoders.losses.pairs import Shard


def distill_l2(shard: Shard) -> torch.Tensor:
    """The loss, a scalar, averaged over the towers that have a teacher.

    Raises:
        ValueError: there are no teacher's vectors, or their dimension differs from the student's.
    """
    local = shard.local
    towers = (
        ("image", local.student_image if local.student_image is not None else local.image, local.teacher_image),
        ("text", local.student_text if local.student_text is not None else local.text, local.teacher_text),
    )
    terms = [_squared(name, student, teacher) for name, student, teacher in towers if teacher is not None]
    if not terms:
        raise ValueError("distill_l2: the batch has no teacher's vectors; give a teacher")
    return shard.mean(torch.stack(terms).mean())


def _squared(name: str, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    if student.shape != teacher.shape:
        raise ValueError(
            f"distill_l2: {name} vectors of the student have {student.shape[1]} dimensions, the teacher's "
            f"{teacher.shape[1]}; project the student's"
        )
    return (normalize(student, dim=1) - normalize(teacher, dim=1)).square().sum()
