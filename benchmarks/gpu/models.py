"""Model directories of the real sizes with seeded random weights, as `encoders` loads them. No network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from benchmarks.gpu.base import Bench
from benchmarks.gpu.words import BERT, RESNET, VIT_B, VIT_L
from benchmarks.pictures import photo
from encoders.description import Description
from encoders.families.loading import load_model
from encoders.families.single_tower import vision_features
from encoders.images.transform import ImageTransform
from encoders.protocol import EncoderOptions, Precision
from encoders.registry import describe
from encoders.runtime.device import Runtime
from encoders.runtime.towers import ImageTower, TowersEncoder

_SIDE, _SMALL_SIDE = 224, 32
_SMALL_WORDS = 64
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def directory(bench: Bench, name: str) -> Path:
    """The directory of a model, made once."""
    folder = bench.folder / name.replace("/", "-").lower()
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        model = _MAKERS[name](bench.device != "cuda").eval()
        _scatter(model)
        _calibrate(model, _SMALL_SIDE if bench.device != "cuda" else _SIDE)
        if name == BERT:
            _tokenizer().save_pretrained(folder)
        else:
            _write_processor(folder, _SMALL_SIDE if bench.device != "cuda" else _SIDE)
        model.save_pretrained(folder)
    return folder


def _vit(width: int, layers: int, heads: int, patch: int) -> Callable[[bool], nn.Module]:
    def make(small: bool) -> nn.Module:
        sizes: Any = (32, 2, 4, 8, _SMALL_SIDE) if small else (width, layers, heads, patch, _SIDE)
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
        return ViTModel(ViTConfig(**dict(zip(names, sizes, strict=True)), intermediate_size=4 * sizes[0]))

    return make


def _resnet(small: bool) -> nn.Module:
    sizes: dict[str, Any] = {"embedding_size": 32, "hidden_sizes": [64, 64, 128, 256], "depths": [1, 1, 1, 1]}
    return ResNetModel(ResNetConfig(**(sizes if small else {})))


def _bert(small: bool) -> nn.Module:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 128, "vocab_size": _SMALL_WORDS}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    return BertModel(BertConfig(**(sizes if small else {})))


_MAKERS: dict[str, Callable[[bool], nn.Module]] = {
    RESNET: _resnet,
    VIT_B: _vit(768, 12, 12, 32),
    VIT_L: _vit(1024, 24, 16, 14),
    BERT: _bert,
}


@torch.no_grad()
def _scatter(model: nn.Module) -> None:
    """Weights under which different inputs get different vectors: of freshly made ones a comparison sees little."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 1 / math.sqrt(parameter[0].numel()))


@torch.no_grad()
def _calibrate(model: nn.Module, side: int) -> None:
    """Statistics for batch norms, without which a deep network of random weights makes all pictures alike."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    pictures = np.stack(photos(side)[:8]).astype(np.float32) / 128 - 1
    model(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    model.eval()


def _write_processor(folder: Path, side: int) -> None:
    square = {"height": side, "width": side}
    processor: dict[str, Any] = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": side}}
    processor |= {
        "do_resize": True,
        "crop_size": square,
        "do_center_crop": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    }
    processor |= {"do_normalize": True, "resample": 3, "image_mean": _MEAN, "image_std": _STD}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordPiece

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    tokenizer = Tokenizer(WordPiece(vocab={word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", model_max_length=64, **names)


@dataclass(frozen=True, kw_only=True)
class Rig:
    """An image encoder with its parts at hand.

    Attributes:
        encoder: of the product.
        network: the model of transformers, on the device.
        features: float32 (n, 3, height, width) on the device → features; the forward pass of `encoder`.
        transform: of its pictures.
        runtime: of `encoder`.
    """

    encoder: TowersEncoder
    network: nn.Module
    features: Callable[[torch.Tensor], torch.Tensor]
    transform: ImageTransform
    runtime: Runtime

    @classmethod
    def load(cls, bench: Bench, name: str, *, precision: Precision = "bf16", batch_size: int = 64) -> Rig:
        """The encoder of a model, put together as `encoders.families.single_tower` does it."""
        folder = directory(bench, name)
        options = EncoderOptions(device=_device(bench), precision=precision, backend="torch", batch_size=batch_size)
        found: Description = describe(str(folder))
        assert found.image_transform is not None
        runtime = Runtime(options)
        network = runtime.place(load_model(AutoModel, folder))
        features = vision_features(network, network.config.model_type)  # type: ignore[union-attr,arg-type]
        (card,) = found.card.towers
        tower = ImageTower(transform=found.image_transform, forward=features, dim=card.dim, runtime=runtime)
        encoder = TowersEncoder(found.card, image=tower)
        return cls(
            encoder=encoder, network=network, features=features, transform=found.image_transform, runtime=runtime
        )

    def vectors(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What `Runtime.run` computes of a batch on the device, left on the device."""
        with torch.inference_mode(), self.runtime.autocast():
            return nn.functional.normalize(self.features(pixel_values).float(), dim=-1)


def _device(bench: Bench) -> Any:
    return bench.device


@cache
def photos(side: int, count: int = 16) -> tuple[NDArray[np.uint8], ...]:
    """Different square pictures."""
    return tuple(photo(seed, side, side) for seed in range(count))


def pixels(transform: ImageTransform, count: int) -> list[NDArray[np.uint8]]:
    """Pictures as an image tower takes them, each in memory of its own."""
    assert transform.fixed_size is not None
    base = photos(transform.fixed_size[0])
    return [base[i % len(base)].copy() for i in range(count)]


def captions(count: int) -> list[str]:
    """Captions of different lengths."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 20, count)
    return [" ".join("".join(rng.choice(list(_LETTERS), 2)) for _ in range(size)) for size in sizes]
