"""Captions per second: isthmus, the same tower padded to its maximum, and sentence-transformers.

    python -m benchmarks.text
    python -m benchmarks.text --captions 2000 --rounds 5 --threads 2

The captions are real sentences with the length of captions: the first sentences of the docstrings of numpy, pandas,
scikit-learn and matplotlib, which `.[towers,explore]` installs. The tower is MiniLM (`minilm`). sentence-transformers
is not a dependency: `pip install -c constraints.txt sentence-transformers`. Without it, its line is left out.
Contenders take turns in one process, with the same weights, captions and threads, and their vectors must agree.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import Goal, ratio, report, summary, take_turns
from encoders.families.packaged import minilm_directory
from encoders.protocol import EncoderOptions
from encoders.registry import load
from encoders.runtime.text import TextTower

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]
OURS, PADDED, CLIP_LENGTH, PEER = "isthmus", "padded to its maximum", "padded to 77 tokens", "sentence-transformers"
_PACKAGES = ("numpy", "pandas", "sklearn", "matplotlib")
_WORDS = range(4, 41)
_CLIP_TOKENS = 77
_SAME = 0.9999


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tower = tower_of(args.threads)
    captions = [text for text in sentences(args.captions) if len(tower.tokenizer(text)["input_ids"]) <= _CLIP_TOKENS]
    # Padding is many times slower. Its time per caption is the same on a part of the captions.
    some = captions[: max(64, args.captions // 8)]
    contenders: dict[str, tuple[Encode, Sequence[str]]] = {
        OURS: (lambda texts: tower.encode(texts).vectors, captions),
        PADDED: (padded(tower, tower.max_tokens), some),
        CLIP_LENGTH: (padded(tower, _CLIP_TOKENS), some),
    }
    peer = sentence_transformers()
    if peer is None:
        sys.stderr.write("sentence-transformers is not installed; its line is left out\n")
    else:
        contenders[PEER] = (peer, captions)
    agreement = {name: agree(encode, tower, some) for name, (encode, _) in contenders.items()}
    figures = take_turns({name: _rate(*c) for name, c in contenders.items()}, args.rounds, say=_say)
    rows = [
        {"contender": name, **{f"captions/s, {k}": v for k, v in found.items()}}
        | {"of isthmus": f"{ratio(figures, name, OURS):.3f}", "least cosine to isthmus": f"{agreement[name]:.6f}"}
        for name, found in summary(figures).items()
    ]
    report(
        "text",
        f"python -m benchmarks.text --captions {args.captions} --rounds {args.rounds} --threads {args.threads}",
        {"MiniLM, float32": rows, "Lengths of the captions": lengths(tower, captions)},
        goals(figures),
    )


def sentences(count: int, seed: int = 0, packages: Sequence[str] = _PACKAGES) -> list[str]:
    """Distinct first sentences of the packages' docstrings with the length of captions, in random order."""
    found: dict[str, None] = {}
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"the captions come from {package}'s docstrings; install isthmus[explore]")
        for path in sorted(Path(spec.submodule_search_locations[0]).rglob("*.py")):
            found.update(dict.fromkeys(_summaries(path)))
    everything = list(found)
    return [everything[i] for i in np.random.default_rng(seed).permutation(len(everything))[:count]]


def _summaries(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    texts = [" ".join((ast.get_docstring(node) or "").split("\n\n")[0].split()) for node in nodes]
    return [text for text in texts if len(text.split()) in _WORDS]


def tower_of(threads: int) -> TextTower:
    """MiniLM's text tower in torch, like its peer."""
    encoder: Any = load("minilm", EncoderOptions(threads=threads, device="cpu", backend="torch"))
    found: TextTower = encoder._text
    return found


def padded(tower: TextTower, tokens: int) -> Encode:
    """The same tower, with each batch padded to this number of tokens."""
    other = copy(tower)
    other.pad_to_max, other.max_tokens = True, tokens
    return lambda texts: other.encode(texts).vectors


def sentence_transformers() -> Encode | None:
    """The peer with the same model directory; None if it is not installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm_directory()), device="cpu")

    def encode(texts: Sequence[str]) -> Vectors:
        found = model.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, np.float32)

    return encode


def agree(encode: Encode, tower: TextTower, captions: Sequence[str]) -> float:
    """The least cosine between a contender's vector of a caption and ours.

    Raises:
        ValueError: the cosine is below 0.9999, so the contenders do not do the same work.
    """
    least = float((encode(captions) * tower.encode(captions).vectors).sum(axis=1).min())
    if least < _SAME:
        raise ValueError(f"the contenders' vectors differ: cosine {least}; they do not do the same work")
    return least


def lengths(tower: TextTower, captions: Sequence[str]) -> list[dict[str, Any]]:
    """Distribution of the captions' lengths, in words and in tokens."""
    rows = {
        "words": [len(text.split()) for text in captions],
        "tokens": [len(ids) for ids in tower.tokenizer(list(captions))["input_ids"]],
    }
    quantiles = (5, 25, 50, 75, 95, 100)
    return [
        {"in": name, "captions": len(values), "mean": f"{np.mean(values):.1f}"}
        | {f"{q} %": int(np.percentile(values, q)) for q in quantiles}
        for name, values in rows.items()
    ]


def goals(figures: dict[str, list[float]]) -> list[Goal]:
    """The goals of the text path."""
    found = [
        Goal(name="isthmus by padding to 256, MiniLM's maximum", figure=ratio(figures, OURS, PADDED), target=3.0),
        Goal(name="isthmus by padding to 77, CLIP's maximum", figure=ratio(figures, OURS, CLIP_LENGTH), target=3.0),
    ]
    if PEER in figures:
        found.append(Goal(name="isthmus by sentence-transformers", figure=ratio(figures, OURS, PEER), target=1.0))
    return found


def _rate(encode: Encode, captions: Sequence[str]) -> Callable[[], float]:
    def once() -> float:
        started = time.perf_counter()
        encode(captions)
        return len(captions) / (time.perf_counter() - started)

    return once


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    main()
