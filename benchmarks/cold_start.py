"""Cold start of `isthmus search`, compared with a Python process that only imports torch and loads the same encoder.

    python -m benchmarks.cold_start --folder /tmp/cold

Whole processes take turns, on a table of 2,000 captions embedded by `minilm` (extra `towers`). The contenders are a
search by words; the yardstick, which loads this model with transformers and encodes one caption; and a full-text
search, which needs no model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Goal, ratio, report, summary, take_turns
from encoders.families.packaged import minilm_directory

_ROWS = 2_000
_MODEL = """
import sys, torch
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(sys.argv[1], local_files_only=True).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
with torch.inference_mode():
    model(**tokenizer(["red dog"], return_tensors="pt"))
"""
_MODULES = """
import json, os, sys
sys.argv = ["isthmus", *sys.argv[1:]]
from jobs.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
print(json.dumps(sorted({"torch", "ray", "transformers", "pandas", "lancedb"} & set(sys.modules))))
"""
_WORDS, _MODEL_ALONE, _FULL_TEXT = "search by words", "torch and the encoder alone", "full text"


def make_table(folder: Path) -> str:
    """The table, made by the isthmus commands. An existing one is reused."""
    table, corpus = folder / "db" / "captions", folder / "captions.parquet"
    if not table.with_suffix(".lance").exists():
        folder.mkdir(parents=True, exist_ok=True)
        colours, things = ("red", "blue", "green", "old"), ("dog", "cat", "shoe", "boat", "house")
        captions = [f"a {colours[i % 4]} {things[i % 5]}, number {i}" for i in range(_ROWS)]
        pq.write_table(pa.table({"id": [str(i) for i in range(_ROWS)], "caption": captions}), corpus)
        isthmus("embed", str(corpus), "--table", str(table), "--encoder", "minilm", "--columns.key", "id")
        isthmus("index", str(table))
    return str(table)


def isthmus(*arguments: str) -> None:
    """Run one isthmus command in its own process."""
    subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], check=True, capture_output=True)


def timed(command: Sequence[str]) -> Callable[[], float]:
    """A contender that returns the wall seconds of a whole process."""

    def run() -> float:
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - started

    return run


def modules(*arguments: str) -> list[str]:
    """The heavy packages that a command has imported when it ends."""
    done = subprocess.run([sys.executable, "-c", _MODULES, *arguments], check=True, capture_output=True, text=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder that keeps the table for later runs")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    table = make_table(given.folder)
    python, search = sys.executable, ("search", table, "red dog", "--json")
    figures = take_turns(
        {
            _WORDS: timed([python, "-m", "jobs.cli", *search]),
            _MODEL_ALONE: timed([python, "-c", _MODEL, str(minilm_directory())]),
            _FULL_TEXT: timed([python, "-m", "jobs.cli", *search, "--full-text"]),
        },
        given.rounds,
    )
    imported = modules(*search, "--full-text")
    torch_free = float(not {"torch", "ray"} & set(imported))
    rows = [
        {"process": name, **{f"{key} s": value for key, value in f.items()}} for name, f in summary(figures).items()
    ]
    goals = [
        Goal(
            name="search by words: time by that of torch and the encoder alone",
            figure=ratio(figures, _WORDS, _MODEL_ALONE),
            target=1.5,
            at_least=False,
        ),
        Goal(
            name="full text imports neither torch nor ray",
            figure=torch_free,
            target=1.0,
            note=f"of the heavy packages it imports {', '.join(imported) or 'none'}",
        ),
        Goal(
            name="full text: time by that of torch and the encoder alone",
            figure=ratio(figures, _FULL_TEXT, _MODEL_ALONE),
            target=0.5,
            at_least=False,
        ),
    ]
    report("cold_start", "python -m benchmarks.cold_start --folder FOLDER", {"Whole processes": rows}, goals)
    return int(not all(goal.met for goal in goals))


if __name__ == "__main__":
    raise SystemExit(main())
