"""A training step of isthmus, compared with a plain torch loop and with open_clip's loss in that loop.

    python -m benchmarks.train
    python -m benchmarks.train --open-clip FOLDER --rounds 5 --steps 4 --batch 32 --chunk 8

The model is CLIP-small (random weights: ViT of 6 layers x 256 at 128 px, text of 6 x 256, MiniLM's vocabulary). It
trains in two gloo processes and in one, with one thread each. Pairs are in memory as tensors, so reading is not
measured. The plain loop is written by hand: forward, gather with gradients, InfoNCE, backward, AdamW with torch's
defaults, under DDP. It does not clip gradients, check them or follow a schedule; isthmus' step does all three.
open_clip's loss comes from a folder made by `pip install --no-deps --target FOLDER open_clip_torch`. Without
`--open-clip`, its line is left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.harness import Figures, Goal, ratio, report, summary, take_turns
from benchmarks.train_workers import GRAD_CACHE, LIT, LIT_CACHED, OPEN_CLIP, OURS, PLAIN, RAW, Job, alone, serve

_ONE = ", one worker"
_SIDE, _PATCH, _TOKENS = 128, 16, 64
_TOWER = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}


class Group:
    """Processes that run a training step together."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        """Start the processes, and wait until all have built their contenders."""
        context = multiprocessing.get_context("spawn")
        self.pairs = sum(job.batch for job in jobs)
        self._pipes: list[Connection] = []
        self._processes = []
        for job in jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(job, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        self.names: list[str] = [pipe.recv() for pipe in self._pipes].pop()

    def run(self, name: str, steps: int) -> tuple[float, list[list[float]]]:
        """Run steps of a contender. Return pairs per second and each process' losses."""
        for pipe in self._pipes:
            pipe.send((name, steps))
        answers = [pipe.recv() for pipe in self._pipes]
        return steps * self.pairs / max(seconds for seconds, _ in answers), [losses for _, losses in answers]

    def stop(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()


def main() -> None:
    """Measure and report."""
    args = _parser().parse_args()
    if args.open_clip is None:
        sys.stderr.write("no --open-clip FOLDER: the line of its loss is left out\n")
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Path(scratch) / "clip-small", args)
    command = f"--rounds {args.rounds} --steps {args.steps} --batch {args.batch} --chunk {args.chunk}"
    folder = " --open-clip FOLDER" if args.open_clip else ""
    report("train", f"python -m benchmarks.train {command}{folder}", tables(figures), goals(figures))


def measure(folder: Path, args: argparse.Namespace, names: Collection[str] | None = None) -> Figures:
    """Pairs per second of each contender, with two workers and with one.

    Args:
        folder: folder in which the model is made.
        args: arguments of the command.
        names: contenders to measure with two workers; None measures all, with two workers and with one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = clip_small(folder)
    jobs = [Job(model=model, batch=args.batch, chunk=args.chunk, rank=rank, world=2, port=port,
                open_clip=args.open_clip) for rank in range(2)]  # fmt: skip
    groups = [two := Group(jobs)]
    agree(two)
    turns = {name: _turn(two, name, args.steps) for name in two.names if names is None or name in names}
    if names is None:
        groups.append(one := Group([alone(jobs[0])]))
        turns |= {name + _ONE: _turn(one, name, args.steps) for name in one.names}
    figures = take_turns(turns, args.rounds, say=lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    for group in groups:
        group.stop()
    return figures


def small(folder: Path, rounds: int, steps: int) -> Figures:
    """`measure` with few pairs, and only for contenders with a goal."""
    args = _parser().parse_args(["--rounds", str(rounds), "--steps", str(steps), "--batch", "16"])
    return measure(folder, args, (OURS, PLAIN, GRAD_CACHE))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps in a contender's turn")
    parser.add_argument("--batch", type=int, default=32, help="pairs in a batch of one process")
    parser.add_argument("--chunk", type=int, default=8, help="pairs in a chunk of GradCache")
    parser.add_argument(
        "--open-clip", type=Path, default=None, help="folder with open_clip_torch; default: leave it out"
    )
    return parser


def clip_small(directory: Path) -> Path:
    """Write a small CLIP with random weights, MiniLM's tokenizer and a processor. Return its directory."""
    import torch
    import transformers as tf

    from encoders.families.packaged import minilm_directory

    torch.manual_seed(0)
    tokenizer = tf.AutoTokenizer.from_pretrained(minilm_directory())
    special = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    text = {**_TOWER, **special, "vocab_size": len(tokenizer), "max_position_embeddings": _TOKENS}
    vision = {**_TOWER, "image_size": _SIDE, "patch_size": _PATCH}
    tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=256)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    size = {"height": _SIDE, "width": _SIDE}
    tf.CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size=size).save_pretrained(directory)
    return directory


def agree(group: Group) -> None:
    """Check that the contenders do the same work.

    Raises:
        ValueError: their losses before any step differ by more than a ten-thousandth.
    """
    losses = {name: group.run(name, 1)[1] for name in group.names}
    # Our loss is the mean over the processes. In the plain loop, each process has its own.
    means = {name: sum(each[0] for each in found) / len(found) for name, found in losses.items()}
    if max(means.values()) - min(means.values()) > 1e-4 * means[OURS]:
        raise ValueError(f"the contenders' losses differ: {means}; they do not do the same work")


def tables(figures: Figures) -> dict[str, list[dict[str, Any]]]:
    """Tables of samples per second of each contender, and of the scaling."""
    rates = [
        {"contender": name, **{f"samples/s, {key}": value for key, value in found.items()}}
        | {"of the plain loop": f"{ratio(figures, name, PLAIN):.3f}"}
        for name, found in summary(figures).items()
        if not name.endswith(_ONE)
    ]
    scaling = [
        {"contender": name, "1 worker": summary(figures)[name + _ONE]["median"]}
        | {"2 workers": summary(figures)[name]["median"], "2 by 1": f"{ratio(figures, name, name + _ONE):.3f}"}
        for name in (OURS, PLAIN)
    ]
    more = [
        {"what": "LiT: cached features by picture after picture", "ratio": f"{ratio(figures, LIT_CACHED, LIT):.2f}"},
        {"what": "isthmus: from pixels and words by from tensors", "ratio": f"{ratio(figures, RAW, OURS):.3f}"},
    ]
    return {"CLIP-small, two workers of a thread each": rates, "From one worker to two": scaling, "Also": more}


def goals(figures: Figures) -> list[Goal]:
    """The goals of the training step."""
    found = [Goal(name="isthmus' step by the plain loop's", figure=ratio(figures, OURS, PLAIN), target=0.97)]
    if OPEN_CLIP in figures:
        name = "isthmus' step by open_clip's loss in the plain loop"
        note = "isthmus' AdamW is fused, the loops' is torch's default; isthmus also clips, checks, and gathers ids"
        found.append(Goal(name=name, figure=ratio(figures, OURS, OPEN_CLIP), target=1.0, note=note))
    name = "GradCache: time of a sample by that of a plain step"
    return [*found, Goal(name=name, figure=ratio(figures, OURS, GRAD_CACHE), target=1.35, at_least=False)]


def _turn(group: Group, name: str, steps: int) -> Callable[[], float]:
    return lambda: group.run(name, steps)[0]


if __name__ == "__main__":
    main()
