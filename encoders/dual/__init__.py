"""Dual towers: any vision backbone and any text backbone with trained heads, saved in one directory as one encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encoders.dual.model import DualTower

__all__ = ["DualTower"]


def __getattr__(name: str) -> Any:
    """Import `DualTower` on first use, because reading a directory's card must not import torch."""
    if name == "DualTower":
        from encoders.dual.model import DualTower

        return DualTower
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
