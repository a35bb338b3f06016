"""Model directories: their kind, files and digests. Imports neither torch nor transformers."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from encoders.digest import digest_bytes, digest_files, digest_json

DUAL_CONFIG = "isthmus_dual.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
# Entries of a config.json that do not affect the vectors; the digest covers all others.
_BOOKKEEPING = ("transformers_version", "torch_dtype", "dtype", "_name_or_path", "architectures", "auto_map")


class ModelConfig:
    """A directory's `config.json`. Entries that it leaves to defaults are looked up in transformers.

    Importing transformers and torch takes seconds, and the driver of a run needs only a few numbers, which nearly every
    config.json contains.
    """

    def __init__(self, directory: Path) -> None:
        """Read the file.

        Raises:
            ValueError: there is no config.json, or it is not JSON.
        """
        self.directory = directory
        self.raw = read_config(directory)
        self.model_type = str(self.raw.get("model_type"))

    @cached_property
    def full(self) -> Any:
        """The transformers configuration with its defaults filled in.

        Raises:
            ValueError: transformers does not know the model type.
        """
        from encoders.families.loading import load_config

        return load_config(self.directory)

    def get(self, name: str, section: str | None = None) -> Any:
        """An entry of the file, or of a section such as `text_config`; None if the model has no such entry."""
        raw, config = self.raw, None
        if section is not None:
            # Old CLIP directories keep the values that differ from the defaults in `text_config_dict`.
            raw = {**(self.raw.get(section) or {}), **(self.raw.get(f"{section}_dict") or {})}
        if raw.get(name) is not None:
            return raw[name]
        config = self.full if section is None else getattr(self.full, section)
        return getattr(config, name, None)


def module_for(directory: Path) -> str:
    """Name of the module that loads a directory.

    Raises:
        ValueError: the directory holds no model, a model that would run its own code, or a model with several towers of
            a family that isthmus does not know.
    """
    if (directory / DUAL_CONFIG).is_file():
        return "encoders.dual.card"
    config = read_config(directory)
    from encoders.families.two_tower import FAMILIES

    model_type = config.get("model_type")
    if model_type in FAMILIES:
        return "encoders.families.two_tower"
    if "auto_map" in config and not _is_known(str(model_type)):
        raise ValueError(
            f"encoder {directory}: model type {model_type!r} needs code from its own directory, which isthmus never "
            "runs; use a model that transformers itself knows"
        )
    if "vision_config" in config or "text_config" in config:
        raise ValueError(
            f"encoder {directory}: model type {model_type!r} has several towers and is not one of the families that "
            f"isthmus knows: {', '.join(FAMILIES)}"
        )
    return "encoders.families.single_tower"


def read_config(directory: Path) -> dict[str, Any]:
    """The contents of a directory's `config.json`.

    Raises:
        ValueError: there is no config.json, or it is not JSON.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"encoder {directory}: holds no config.json, so it is not a model directory")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"encoder {directory}: config.json cannot be read: {error}") from error


def model_digest(directory: Path, config: dict[str, Any]) -> str:
    """Digest of the weights and the architecture.

    The same weights with another activation or another number of heads give other vectors.

    Raises:
        ValueError: the directory holds no safetensors.
    """
    return digest_json([weights_digest(directory), _architecture(config)])


def weights_digest(directory: Path) -> str:
    """Digest of the directory's safetensors.

    Raises:
        ValueError: there are none; the message says how to convert other weights.
    """
    files = sorted(directory.glob("*.safetensors"))
    if files:
        return digest_files(files)
    others = sorted(path.name for pattern in _OTHER_WEIGHTS for path in directory.glob(pattern))
    found = f"only {', '.join(others)}" if others else "no weights"
    raise ValueError(
        f"encoder {directory}: holds no *.safetensors, {found}; isthmus loads no pickled weights. Convert once with "
        "transformers: AutoModel.from_pretrained(DIR).save_pretrained(NEW_DIR)"
    )


def tokenizer_digest(directory: Path) -> str:
    """Digest of the tokenizer's files.

    Raises:
        FileNotFoundError: the directory holds none.
    """
    files = [directory / name for name in _TOKENIZER_FILES if (directory / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{directory}: holds no tokenizer; save the model's tokenizer there")
    return digest_bytes(digest_files(files).encode())


def identity(directory: Path) -> tuple[str, str]:
    """A directory's short name, and the spec that finds it again.

    A folder of the hub's cache exists only on this machine, so a snapshot gets its hub id and revision as its spec.
    """
    parts = directory.absolute().parts
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        hub_id = parts[-3].removeprefix("models--").replace("--", "/", 1)
        return hub_id, f"{hub_id}@{parts[-1]}"
    resolved = directory.resolve()
    return resolved.name, str(resolved)


def _architecture(config: Any) -> Any:
    if isinstance(config, dict):
        return {name: _architecture(value) for name, value in config.items() if name not in _BOOKKEEPING}
    return config


def _is_known(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING
