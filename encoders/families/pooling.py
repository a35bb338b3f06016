"""How the token features of a text tower become one vector, as the directory's sentence-transformers files specify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Pooling = Literal["mean", "cls", "max"]
_PASSIVE_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "max": "max", "mean_sqrt_len_tokens": "mean"}
_LEGACY_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def pooling_of(directory: Path) -> Pooling:
    """The pooling that a sentence-transformers directory specifies; the mean if it specifies none.

    Raises:
        ValueError: the directory needs something that isthmus does not do: another pooling, a dense layer on top, or a
            prompt before each text. Without it the vectors would be different.
    """
    _check_modules(directory)
    config = _json(directory / "1_Pooling" / "config.json")
    named = config.get("pooling_mode") or [mode for key, mode in _LEGACY_KEYS.items() if config.get(key)] or "mean"
    modes = [named] if isinstance(named, str) else list(named)
    if len(modes) == 1 and modes[0] in _POOLINGS:
        return _POOLINGS[modes[0]]
    raise ValueError(f"encoder {directory}: pooling {' + '.join(modes)} is not one of {', '.join(_POOLINGS)}")


def pool_tokens(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Token features (n, tokens, dim), and a mask (n, tokens) that is 0 at padding → vectors (n, dim)."""
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    if pooling == "max":
        return hidden.masked_fill(weights == 0, float("-inf")).amax(dim=1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def _check_modules(directory: Path) -> None:
    modules: list[dict[str, Any]] = _json(directory / "modules.json") or []
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    others = [kind for kind in kinds if kind not in _PASSIVE_MODULES]
    if others:
        raise ValueError(f"encoder {directory}: modules.json names {', '.join(others)}, which isthmus does not run")
    prompt = _json(directory / "config_sentence_transformers.json").get("default_prompt_name")
    if prompt is not None:
        raise ValueError(
            f"encoder {directory}: puts the prompt {prompt!r} before every text, which isthmus does not do; "
            "set default_prompt_name to null in config_sentence_transformers.json and write the prompt into the texts"
        )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
