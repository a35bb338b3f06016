"""A dual tower of any vision backbone and any text backbone, with trained heads: one directory, one encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encoders.dual.model import DualTower

__all__ = ["DualTower"]


def __getattr__(name: str) -> Any:
    """`DualTower`, imported on first use: reading a directory's card must not import torch."""
    if name == "DualTower":
        from encoders.dual.model import DualTower

        return DualTower
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
