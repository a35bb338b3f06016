"""Small versions of the benches, in about three minutes. CI runs them to detect a gross regression.

    python -m benchmarks.quick

Each figure is a ratio within this run. It is compared with a floor that must hold on the noisiest machine; the real
goals are those of the benches. Prints a table, writes nothing, and exits with 1 if a figure is below its floor.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import backends, decode, text, train, write
from benchmarks.ceiling import measure as ceiling
from benchmarks.embed import BACKEND
from benchmarks.harness import Goal, goal_rows, markdown, ratio, take_turns
from benchmarks.models import clip
from benchmarks.pictures import write_parquet

_ROWS, _CAPTIONS, _PICTURES, _SINK_ROWS = 3_000, 96, 64, 65_536


def embedding(folder: Path) -> Iterator[Goal]:
    """The steady pace of a job against the bare loop, and the share of the ceiling in the job's own report."""
    corpus, model = write_parquet(folder / "corpus", "256 px", _ROWS), str(clip(folder / "models", "small ViT"))
    program = [str(Path(sys.executable).parent / "isthmus"), "embed", str(corpus), "--table", str(folder / "db" / "t")]
    program += ["--encoder", model, "--embed", "image", "--columns.key", "id", "--json", "--backend", BACKEND]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    bare = ceiling(corpus, model, BACKEND)
    yield Goal(name="embed: steady pace by the bare loop's", figure=report["steady_rows_per_s"] / bare, target=0.5)
    yield Goal(name="embed: share of the ceiling, by its own report", figure=report["share_of_ceiling"], target=0.5)


def decoding(folder: Path) -> Iterator[Goal]:
    """JPEGs in the fast mode against PIL's full decode."""
    for size, floor in (("640 px", 1.1), ("12 MP", 2.0)):
        case = next(case for case in decode.cases(2, sizes=(size,)) if case.kind == "JPEG")
        ways = {"PIL": decode.full, "fast": lambda data: decode.prepare(data, decode.TRANSFORM, "fast")}
        turns = {name: (lambda way=way, case=case: decode.rate(way, case.files)) for name, way in ways.items()}
        figures = take_turns(turns, 2)
        yield Goal(name=f"decode, {size}: by PIL's full decode", figure=ratio(figures, "fast", "PIL"), target=floor)


def captions(folder: Path) -> Iterator[Goal]:
    """Captions padded to the longest of a batch against captions padded to CLIP's 77 tokens."""
    tower, found = text.tower_of(2), text.sentences(_CAPTIONS, packages=["numpy"])
    wide = text.padded(tower, 77)

    def rate(encode: Callable[[list[str]], object]) -> Callable[[], float]:
        def once() -> float:
            started = time.perf_counter()
            encode(found)
            return len(found) / (time.perf_counter() - started)

        return once

    figures = take_turns({"ours": rate(tower.encode), "padded": rate(wide)}, 2)
    yield Goal(name="text: by padding to 77", figure=ratio(figures, "ours", "padded"), target=1.5)


def backend(folder: Path) -> Iterator[Goal]:
    """EfficientNet on OpenVINO against torch."""
    lite = "efficientnet-lite0"
    case = backends.Case(name=lite, spec=lite, texts=False, inputs=_PICTURES, wanted=2.0, int8=False)
    _, goals = backends.measure(case, rounds=1, threads=2)
    figure = next(goal.figure for goal in goals if goal.name.endswith("× torch"))
    yield Goal(name="EfficientNet-Lite0: by eager torch", figure=figure, target=case.wanted)


def training(folder: Path) -> Iterator[Goal]:
    """A training step of two workers against a plain loop."""
    figures = train.small(folder / "clip-small", rounds=3, steps=1)
    for goal, floor in zip(train.goals(figures), (0.75, 1.9), strict=False):
        yield Goal(name=f"train: {goal.name}", figure=goal.figure, target=floor, at_least=goal.at_least)


def sinking(folder: Path) -> Iterator[Goal]:
    """Staging and committing in one process against `lance.write_dataset`."""
    bench = write.Bench(folder / "sink", _SINK_ROWS)
    turns = {"sink": bench.one_process, "bare": lambda: bench.write_dataset("bare")}
    yield Goal(name="sink: by write_dataset", figure=ratio(take_turns(turns, 5), "sink", "bare"), target=0.3)


def main() -> int:
    """Run the benches."""
    goals = []
    with tempfile.TemporaryDirectory() as scratch:
        for part in (embedding, decoding, captions, backend, training, sinking):
            started = time.perf_counter()
            goals += list(part(Path(scratch)))
            sys.stderr.write(f"{part.__name__}: {time.perf_counter() - started:.0f} s\n")
    sys.stdout.write(markdown(goal_rows(goals)) + "\n")
    return int(not all(goal.met for goal in goals))


if __name__ == "__main__":
    raise SystemExit(main())
