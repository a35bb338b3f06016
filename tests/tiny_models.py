"""Model directories with tiny random weights, with their tokenizers and image processors: real files, no network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

_SIZE = 32
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": _SIZE,
    "patch_size": 8,
}
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
_CHINESE = list("一只狗猫小红色船房子树的图片")


def tiny_clip(directory: Path) -> Path:
    """CLIP: byte-level BPE, causal text tower pooled at the end token."""
    text = _TEXT | {"vocab_size": 600, "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1}
    config = tf.CLIPConfig(text_config=text | {"pad_token_id": 1}, vision_config=dict(_VISION), projection_dim=24)
    return _save(directory, tf.CLIPModel, config, bpe_tokenizer(), _clip_processor())


def tiny_metaclip2(directory: Path) -> Path:
    """MetaCLIP 2."""
    text = _TEXT | {"vocab_size": 600, "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1}
    config = tf.MetaClip2Config(text_config=text | {"pad_token_id": 1}, vision_config=dict(_VISION), projection_dim=24)
    return _save(directory, tf.MetaClip2Model, config, bpe_tokenizer(), _clip_processor())


def tiny_siglip(directory: Path) -> Path:
    """SigLIP: padded to its maximum, no mask."""
    text = _TEXT | {"vocab_size": 600, "max_position_embeddings": 16, "pad_token_id": 1, "eos_token_id": 1}
    config = tf.SiglipConfig(text_config=text | {"bos_token_id": 0}, vision_config=dict(_VISION))
    processor = tf.SiglipImageProcessorPil(size={"height": _SIZE, "width": _SIZE})
    return _save(directory, tf.SiglipModel, config, bpe_tokenizer(max_length=16, bos=False), processor)


def tiny_siglip_sentencepiece(directory: Path) -> Path:
    """SigLIP with the tokenizer that Google's checkpoints have: plain SentencePiece, lower-cased, no punctuation."""
    import sentencepiece

    tiny_siglip(directory)
    (directory / "tokenizer.json").unlink()
    words = ["a dog on a boat", "the quick brown fox jumps", "red green blue car tree house"] * 50
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_prefix=str(directory / "spiece"), vocab_size=32, minloglevel=2,
        character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    (directory / "spiece.vocab").unlink()
    tf.SiglipTokenizer(str(directory / "spiece.model"), model_max_length=16).save_pretrained(directory)
    return directory


def tiny_siglip_vision(directory: Path) -> Path:
    """The vision tower of SigLIP alone: no class token, an attention head that pools."""
    processor = tf.SiglipImageProcessorPil(size={"height": _SIZE, "width": _SIZE})
    return _save(directory, tf.SiglipVisionModel, tf.SiglipVisionConfig(**_VISION), None, processor)


def tiny_siglip2(directory: Path) -> Path:
    """SigLIP 2 with pictures of native aspect (NaFlex)."""
    text = _TEXT | {"vocab_size": 600, "max_position_embeddings": 16, "pad_token_id": 1, "eos_token_id": 1}
    vision = {k: v for k, v in _VISION.items() if k != "image_size"} | {"num_patches": 16}
    config = tf.Siglip2Config(text_config=text | {"bos_token_id": 0}, vision_config=vision)
    processor = tf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    return _save(directory, tf.Siglip2Model, config, bpe_tokenizer(max_length=16, bos=False), processor)


def tiny_chinese_clip(directory: Path) -> Path:
    """Chinese CLIP: a BERT text tower pooled at its first token."""
    tokenizer = wordpiece_tokenizer()
    text = _TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0}
    config = tf.ChineseCLIPConfig(text_config=text, vision_config=dict(_VISION), projection_dim=24)
    processor = tf.ChineseCLIPImageProcessorPil(
        size={"height": _SIZE, "width": _SIZE}, crop_size={"height": _SIZE, "width": _SIZE}
    )
    return _save(directory, tf.ChineseCLIPModel, config, tokenizer, processor)


def tiny_altclip(directory: Path) -> Path:
    """AltCLIP: an XLM-R text tower."""
    text = _TEXT | {"vocab_size": 600, "max_position_embeddings": 90, "pad_token_id": 1, "project_dim": 24}
    config = tf.AltCLIPConfig(text_config=text, vision_config=dict(_VISION), projection_dim=24)
    return _save(directory, tf.AltCLIPModel, config, bpe_tokenizer(max_length=77), _clip_processor())


def tiny_bert(directory: Path) -> Path:
    """BERT."""
    tokenizer = wordpiece_tokenizer()
    config = tf.BertConfig(**_TEXT, vocab_size=len(tokenizer), max_position_embeddings=40)
    return _save(directory, tf.BertModel, config, tokenizer)


def tiny_modernbert(directory: Path) -> Path:
    """ModernBERT."""
    tokenizer = wordpiece_tokenizer()
    config = tf.ModernBertConfig(
        **_TEXT, vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=0, attn_implementation="eager"
    )
    return _save(directory, tf.ModernBertModel, config, tokenizer)


def tiny_vit(directory: Path, seed: int = 0) -> Path:
    """ViT."""
    processor = tf.ViTImageProcessorPil(size={"height": _SIZE, "width": _SIZE})
    return _save(directory, tf.ViTModel, tf.ViTConfig(**_VISION), None, processor, seed=seed)


def tiny_resnet(directory: Path) -> Path:
    """ResNet."""
    config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    processor = tf.ConvNextImageProcessorPil(size={"shortest_edge": _SIZE}, crop_pct=0.875)
    return _save(directory, tf.ResNetModel, config, None, processor)


def tiny_dinov2(directory: Path) -> Path:
    """DINOv2."""
    vision = {k: v for k, v in _VISION.items() if k != "intermediate_size"}
    processor = tf.BitImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": _SIZE, "width": _SIZE}, resample=3
    )
    return _save(directory, tf.Dinov2Model, tf.Dinov2Config(**vision), None, processor)


def tiny_blip(directory: Path) -> Path:
    """BLIP with its image-text matching head."""
    tokenizer = wordpiece_tokenizer()
    text = _TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "encoder_hidden_size": 32}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    config = tf.BlipConfig(text_config=text, vision_config=dict(_VISION), image_text_hidden_size=24)
    processor = tf.BlipImageProcessorPil(size={"height": _SIZE, "width": _SIZE})
    return _save(directory, tf.BlipForImageTextRetrieval, config, tokenizer, processor)


def tiny_vilt(directory: Path, words: tuple[str, ...] = (), **larger: Any) -> Path:
    """ViLT with its retrieval head; optionally with more words or other larger settings."""
    tokenizer = wordpiece_tokenizer(words)
    both = {**_VISION, "vocab_size": len(tokenizer), "max_position_embeddings": 40, **larger}
    processor = tf.ViltImageProcessorPil(size={"shortest_edge": _SIZE}, size_divisor=8)
    return _save(directory, tf.ViltForImageAndTextRetrieval, tf.ViltConfig(**both), tokenizer, processor)


def tiny_bridgetower(directory: Path) -> Path:
    """BridgeTower with its image-text matching head."""
    tokenizer = bpe_tokenizer()
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "image_size": _SIZE, "patch_size": 8}
    text = _TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "pad_token_id": 1}
    config = tf.BridgeTowerConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        text_config=text | {"hidden_size": 64},
        vision_config=vision,
    )
    processor = tf.BridgeTowerImageProcessorPil(
        size={"shortest_edge": _SIZE}, crop_size={"shortest_edge": _SIZE}, size_divisor=8
    )
    return _save(directory, tf.BridgeTowerForImageAndTextRetrieval, config, tokenizer, processor)


def edit_json(path: Path, **entries: Any) -> None:
    """Set entries of a JSON file, which is created if missing."""
    data = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data | entries))


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Rewrite a directory's weights."""
    path = directory / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def halve(directory: Path) -> None:
    """Store a directory's weights in half precision, as many checkpoints do."""
    edit_weights(directory, lambda weights: {name: tensor.half() for name, tensor in weights.items()})
    edit_json(directory / "config.json", dtype="float16")


def bpe_tokenizer(*, max_length: int = 24, bos: bool = True) -> Any:
    """A byte-level BPE tokenizer without merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1} | {letter: i + 2 for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="</s>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    single = "<s> $A </s>" if bos else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="</s>",
        model_max_length=max_length,
    )


def wordpiece_tokenizer(more: tuple[str, ...] = ()) -> Any:
    """A WordPiece tokenizer of letters, some Chinese characters and further words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *_CHINESE, *more]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=40,
    )


def _clip_processor() -> Any:
    return tf.CLIPImageProcessorPil(size={"shortest_edge": _SIZE}, crop_size={"height": _SIZE, "width": _SIZE})


def _save(
    directory: Path, model_class: Any, config: Any, tokenizer: Any = None, processor: Any = None, *, seed: int = 0
) -> Path:
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.08)
    model.save_pretrained(directory)
    for part in (tokenizer, processor):
        if part is not None:
            part.save_pretrained(directory)
    return directory
