"""Encoders on the CPU: torch against OpenVINO. Both have the same weights and run whole encoder calls in one process.

    python -m benchmarks.backends

A call is the same as in an embed job: from uint8 pixels or captions to vectors, so it includes normalising the pictures
and tokenising. A call takes a second or more, because the previous contender's threads spin for some tenths of a
second. CLIP ViT-B/32 and the small ViT have random weights, which take as much time as trained ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Goal, ratio, report, summary, take_turns
from encoders.protocol import Encoder, EncoderOptions
from encoders.registry import load

_BATCH = 64
# The contenders of torch. `auto` chooses the first or the second of these.
_OPTIONS = {
    "torch": EncoderOptions(backend="torch"),
    "openvino": EncoderOptions(backend="openvino"),
    "openvino bf16": EncoderOptions(backend="openvino", precision="bf16"),
    "openvino int8": EncoderOptions(precision="int8"),
}
_MINILM = (
    "of a call over 256 captions 0.252 of 0.264 s are the graph, 4 % tokenising and padding; batches of 256 to 4,096 "
    "tokens are equally fast within 10 %; measured alone, call after call, it was 2.3 times"
)
_SAME = {"openvino": 0.9999, "openvino int8": 0.99}


@dataclass(frozen=True, kw_only=True)
class Case:
    """An encoder, its inputs, and the wanted speed as a multiple of torch's."""

    name: str
    spec: str
    texts: bool
    inputs: int
    wanted: float
    int8: bool = True
    note: str = ""


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder)):
            found, met = measure(case, given.rounds, given.threads)
            rows += found
            goals += met
    command = f"python -m benchmarks.backends --rounds {given.rounds} --threads {given.threads}"
    report("backends", command, {f"inputs a second, {given.threads} threads, one process": rows}, goals)
    sys.exit(0 if all(goal.met for goal in goals) else 1)


def cases(folder: Path) -> list[Case]:
    """The cases to measure. Models with random weights are created in the folder."""
    clip, vit = _clip(folder / "clip"), _small_vit(folder / "vit")
    lite = "efficientnet-lite0"
    return [
        Case(name=lite, spec=lite, texts=False, inputs=3 * _BATCH, wanted=5.0, int8=False),
        Case(name="minilm", spec="minilm", texts=True, inputs=12 * _BATCH, wanted=2.0, note=_MINILM),
        Case(name="CLIP ViT-B/32, pictures", spec=clip, texts=False, inputs=_BATCH, wanted=1.0),
        Case(name="CLIP ViT-B/32, captions", spec=clip, texts=True, inputs=4 * _BATCH, wanted=1.0),
        Case(name="small ViT, 12 layers of 192", spec=vit, texts=False, inputs=2 * _BATCH, wanted=1.0),
    ]


def measure(case: Case, rounds: int, threads: int) -> tuple[list[dict[str, Any]], list[Goal]]:
    """Measure one encoder: rows of the table, and goals."""
    inputs: Any = _captions(case.inputs) if case.texts else _pictures(case.inputs)
    vectors: dict[str, NDArray[np.float32]] = {}
    contenders: dict[str, Callable[[], float]] = {}
    load_s: dict[str, float] = {}
    for name, options in _OPTIONS.items():
        if name.endswith("int8") and not case.int8:
            continue
        started = time.perf_counter()
        encoder = load(case.spec, _with_threads(options, threads))
        load_s[name] = time.perf_counter() - started
        contenders[name] = _timed(encoder, inputs, case.texts, vectors, name)
    figures = take_turns(contenders, rounds, say=lambda line: _say(case.name, line))
    rows, goals = [], []
    for name, found in summary(figures).items():
        cosine = float(np.einsum("nd,nd->n", vectors[name], vectors["torch"]).min())
        times = ratio(figures, name, "torch")
        rows.append(
            {
                "encoder": case.name,
                "backend": name,
                **found,
                "× torch": f"{times:.2f}",
                "least cosine": f"{cosine:.6f}",
                "load + trial, s": f"{load_s[name]:.1f}",
            }
        )
        if name in _SAME:
            goals.append(Goal(name=f"{case.name}, {name}: least cosine", figure=cosine, target=_SAME[name]))
        if name == "openvino":
            goals.append(Goal(name=f"{case.name}: × torch", figure=times, target=case.wanted, note=case.note))
    return rows, goals


def _with_threads(options: EncoderOptions, threads: int) -> EncoderOptions:
    return replace(options, threads=threads, batch_size=_BATCH)


def _timed(
    encoder: Encoder, inputs: Any, texts: bool, vectors: dict[str, NDArray[np.float32]], name: str
) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        vectors[name] = encoder.encode_texts(inputs).vectors if texts else encoder.encode_images(inputs)
        return len(inputs) / (time.perf_counter() - started)

    return run


def _say(name: str, line: str) -> None:
    sys.stderr.write(f"{name}: {line}\n")


def _pictures(n: int) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (n, 224, 224, 3), np.uint8))


def _captions(n: int) -> list[str]:
    """Captions of 5 to 24 words, with a median of about 14, as captions of pictures have."""
    rng = np.random.default_rng(0)
    words = ["a", "the", "red", "small", "old", "dog", "house", "boat", "child", "tree", "on", "under", "beside", "two"]
    lengths = np.clip(rng.normal(14, 4, n), 5, 24).astype(int)
    assert 10 < statistics.median(lengths) < 18
    return [" ".join(rng.choice(words, length)) for length in lengths]


def _clip(folder: Path) -> str:
    import torch
    import transformers as tf

    torch.manual_seed(0)
    tokenizer = _word_tokenizer()
    config = tf.CLIPConfig(text_config={"vocab_size": 49408, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1})
    tf.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tf.CLIPImageProcessorPil().save_pretrained(folder)
    return str(folder)


def _small_vit(folder: Path) -> str:
    import torch
    import transformers as tf

    torch.manual_seed(0)
    config = tf.ViTConfig(hidden_size=192, intermediate_size=768, num_hidden_layers=12, num_attention_heads=3)
    tf.ViTModel(config).save_pretrained(folder)
    tf.ViTImageProcessorPil().save_pretrained(folder)
    return str(folder)


def _word_tokenizer() -> Any:
    """A tokenizer of whole words. Like CLIP's own tokenizer, it gives about one token per word."""
    import transformers as tf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for caption in _captions(500) for word in caption.split()})
    vocab = {"<s>": 0, "</s>": 1} | {word: i + 2 for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "</s>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=77, **special)


if __name__ == "__main__":
    main()
