"""Whether OpenVINO is wanted, and there: asked without loading torch."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from encoders.protocol import EncoderOptions


def check_backend(options: EncoderOptions) -> None:
    """Refuse options that ask for OpenVINO where there is none.

    Raises:
        ModuleNotFoundError: the extra `cpu` is not installed.
    """
    asked = "precision 'int8'" if options.precision == "int8" else f"backend {options.backend!r}"
    if is_openvino_asked(options) and not has_openvino():
        raise ModuleNotFoundError(f"{asked} needs the package openvino: pip install 'isthmus[cpu]'")


def is_openvino_asked(options: EncoderOptions) -> bool:
    """Whether nothing but OpenVINO will do."""
    return options.backend == "openvino" or options.precision == "int8"


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def settled(options: EncoderOptions) -> EncoderOptions:
    """The options with what `auto` comes to in a long run, so that a short sample can be timed in its stead."""
    import torch

    cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    if options.backend != "auto" or cuda or not has_openvino():
        return options
    return replace(options, backend="openvino")
