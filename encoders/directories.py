"""Model directories: which kind they are, their files, their digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from encoders.digest import digest_bytes, digest_files

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


def module_for(directory: Path) -> str:
    """The module that loads a directory.

    Raises:
        ValueError: no model is there, or one that would run code of its own.
    """
    if (directory / DUAL_CONFIG).is_file():
        return "encoders.dual"
    config = read_config(directory)
    from encoders.two_tower import FAMILIES

    if config.get("model_type") in FAMILIES:
        return "encoders.two_tower"
    if "auto_map" in config and not _is_known(str(config.get("model_type"))):
        raise ValueError(
            f"encoder {directory}: model type {config.get('model_type')!r} brings its own code, which isthmus never "
            "runs; use a model that transformers itself knows"
        )
    return "encoders.single_tower"


def read_config(directory: Path) -> dict[str, Any]:
    """The directory's `config.json`.

    Raises:
        ValueError: there is none, or it is not JSON.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"encoder {directory}: holds no config.json, so it is no model directory")
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"encoder {directory}: config.json cannot be read: {error}") from error


def weights_digest(directory: Path) -> str:
    """Digest of the directory's safetensors.

    Raises:
        ValueError: there are none; says how to make them.
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
        FileNotFoundError: there are none.
    """
    files = [directory / name for name in _TOKENIZER_FILES if (directory / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{directory}: holds no tokenizer; save the model's tokenizer there")
    return digest_bytes(digest_files(files).encode())


def load_config(directory: Path) -> Any:
    """The transformers configuration, defaults filled in.

    Raises:
        ValueError: a model type that transformers does not know.
    """
    from transformers import AutoConfig

    quiet_transformers()
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (KeyError, OSError) as error:
        raise ValueError(f"encoder {directory}: transformers cannot read its config.json: {error}") from error


def quiet_transformers() -> None:
    """Keep transformers' progress bars, one a load, out of the logs of a thousand actors."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_tokenizer(directory: Path) -> Any:
    """The transformers tokenizer.

    Raises:
        ValueError: it cannot be loaded without code of its own.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (KeyError, OSError, ImportError) as error:
        raise ValueError(f"encoder {directory}: its tokenizer cannot be loaded: {error}") from error


def _is_known(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING
