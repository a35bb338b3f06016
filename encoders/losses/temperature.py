"""The learnable temperature: a log scale within [0, ln 100] (CLIP, arXiv:2103.00020, section 2.5)."""

from __future__ import annotations

import math

import torch

LOWEST_LOG_SCALE = 0.0
HIGHEST_LOG_SCALE = math.log(100.0)
_TOLERANCE = 1e-6


@torch.no_grad()
def clamp_log_scale(log_scale: torch.Tensor) -> bool:
    """Clamp a log scale () to its bounds, in place, after a step. True if it is at its upper bound."""
    log_scale.clamp_(LOWEST_LOG_SCALE, HIGHEST_LOG_SCALE)
    return bool(log_scale >= HIGHEST_LOG_SCALE - _TOLERANCE)
