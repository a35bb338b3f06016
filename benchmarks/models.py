"""Model directories of real sizes with random weights. The measured speed does not depend on the weights' values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# (hidden size, layers, heads) of the image tower, then of the text tower. All read 224 px in patches of 32.
SIZES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "ViT-B/32": ((768, 12, 12), (512, 12, 8)),
    "small ViT": ((256, 3, 4), (128, 2, 2)),
}


def clip(folder: Path, name: str) -> Path:
    """The directory of a CLIP of one of `SIZES`. It is made once.

    Args:
        folder: folder of the model directories.
        name: key of `SIZES`.
    """
    directory = folder / name.replace("/", "-").replace(" ", "-").lower()
    if (directory / "config.json").is_file():
        return directory
    import torch
    import transformers as tf

    torch.manual_seed(0)
    (width, layers, heads), (text_width, text_layers, text_heads) = SIZES[name]
    vision: dict[str, Any] = {"patch_size": 32, "image_size": 224, "intermediate_size": 4 * width}
    vision |= {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    text: dict[str, Any] = {"vocab_size": 49_408, "intermediate_size": 4 * text_width, "hidden_size": text_width}
    text |= {"num_hidden_layers": text_layers, "num_attention_heads": text_heads}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=512))
    model.save_pretrained(directory)
    _tokenizer(directory)
    processor = {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}, "resample": 3}
    processor |= {"do_resize": True, "do_center_crop": True, "do_rescale": True, "rescale_factor": 1 / 255}
    processor |= {"do_normalize": True, "do_convert_rgb": True, "image_processor_type": "CLIPImageProcessor"}
    processor |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


def _tokenizer(directory: Path) -> None:
    """A tokenizer of CLIP's kind, byte-level BPE, without merges: each byte of a caption is a token."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(directory / "vocab.json"), str(directory / "merges.txt")).save_pretrained(directory)
