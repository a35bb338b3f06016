"""Loading models, configurations and tokenizers of transformers from directories: safetensors only, no custom code."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_config(directory: Path) -> Any:
    """The transformers configuration with its defaults filled in.

    Raises:
        ValueError: transformers does not know the model type, or cannot read the file.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"encoder {directory}: transformers cannot read its config.json: {error}") from error


def load_model(model_class: Any, directory: Path) -> Any:
    """A model with the directory's weights, in float32 whatever the stored precision.

    By default transformers computes in the stored precision, and a half-precision model on the CPU is slow and inexact.

    Raises:
        ValueError: the directory lacks some of the model's weights, which transformers would initialise at random.
    """
    import torch

    _quiet_transformers()
    model, found = model_class.from_pretrained(
        directory,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=torch.float32,
        output_loading_info=True,
    )
    # The poolers of BERT and ViT are never read, and masked-language checkpoints have none.
    missing = sorted(name for name in found["missing_keys"] if "pooler" not in name.split("."))
    if missing:
        raise ValueError(
            f"encoder {directory}: its safetensors lack {len(missing)} of the weights of {type(model).__name__}, "
            f"{missing[0]!r} among them; save the whole model"
        )
    return model


def load_tokenizer(directory: Path) -> Any:
    """The transformers tokenizer of a directory.

    Raises:
        ValueError: it cannot be loaded without custom code.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (KeyError, OSError, ImportError, ValueError) as error:
        raise ValueError(f"encoder {directory}: its tokenizer cannot be loaded: {error}") from error


def _quiet_transformers() -> None:
    """Keep transformers' progress bars (one per load) out of the logs of a thousand actors."""
    from transformers.utils import logging

    logging.disable_progress_bar()
