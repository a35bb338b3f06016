"""Rows per second of `isthmus embed`, compared with a bare loop on the same cores and with its peers.

    sh benchmarks/peers/install.sh PEERS
    python -m benchmarks.embed --folder FOLDER --peers PEERS

The jobs turn Parquet with JPEG bytes into a committed table, with random weights of a CLIP ViT-B/32 and of a small ViT.
The small ViT is so cheap that the pipeline is measured. Contenders take turns; each is a separate process, timed from
outside. *Whole* is all rows divided by all seconds. *Steady* excludes the start: in each round a contender also runs a
job of few rows, which also keeps all cores busy; its rows and its seconds are subtracted. The ceiling is
`benchmarks/ceiling.py`. The job and the ceiling take further turns without the peers, because they are closest to each
other. Measured cases are kept in FOLDER, and the report contains all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance

from benchmarks.harness import Goal, ratio, report, summary, take_turns
from benchmarks.models import clip
from benchmarks.pictures import write_parquet, write_tars
from encoders.protocol import Backend

OURS, CEILING, CLIP_RETRIEVAL, DAFT, RECIPE = "isthmus", "ceiling", "clip-retrieval", "Daft", "Ray Data recipe"
# Chosen at loading, which belongs to the start. By default a job tries it on its first batches and changes over later.
BACKEND: Backend = "openvino"
# (model, size of the pictures) → rows: enough that the part subtracted from a run is small.
CASES = {
    ("small ViT", "256 px"): 3_000,
    ("small ViT", "640 px"): 2_000,
    ("small ViT", "12 MP"): 320,
    ("ViT-B/32", "256 px"): 640,
    ("ViT-B/32", "640 px"): 640,
    ("ViT-B/32", "12 MP"): 384,
}
_FEW, _FEW_SHARE = 128, 8
_FEWER = ", few rows"
_CEILING_GOALS = {"ViT-B/32": 0.95, "small ViT": 0.85}
_PEER_GOALS = {CLIP_RETRIEVAL: 1.3, DAFT: 1.2, RECIPE: 1.5}
# Why goals were missed.
_WHY = {
    "small ViT, 12 MP": (
        "a core decodes and encodes such a picture in 95 ms, and the job needs 12 ms more to read its "
        "6 MB (benchmarks.reading), which the ceiling has in memory"
    ),
}
_SCRIPTS = Path(__file__).parent / "peers"


@dataclass(frozen=True, kw_only=True)
class Case:
    """The corpus and the model that one run of the bench embeds."""

    model: str
    size: str
    rows: int
    folder: Path
    peers: Path

    @property
    def few(self) -> int:
        """Rows of the small job that is subtracted."""
        return max(_FEW, self.rows // _FEW_SHARE)

    @property
    def name(self) -> str:
        """Name of the case in reports."""
        return f"{self.model}, {self.size}"

    def corpus(self, rows: int, kind: str = "parquet") -> Path:
        """The corpus of this many rows."""
        write = write_parquet if kind == "parquet" else write_tars
        return write(self.folder / "corpora" / self.size.replace(" ", "") / f"{rows}-{kind}", self.size, rows)

    @property
    def weights(self) -> str:
        """The model's directory."""
        return str(clip(self.folder / "models", self.model))


def seconds_of(command: Sequence[str], out: Path) -> float:
    """Wall seconds of a process that writes to `out`, which is removed first.

    Raises:
        RuntimeError: the process failed.
    """
    shutil.rmtree(out, ignore_errors=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-3000:]}")
    return seconds


def ours(case: Case, rows: int) -> float:
    """`isthmus embed`."""
    out = case.folder / "out" / "isthmus"
    program = str(Path(sys.executable).parent / "isthmus")
    command = [program, "embed", str(case.corpus(rows)), "--table", f"{out}/t", "--encoder", case.weights]
    seconds = seconds_of([*command, "--embed", "image", "--columns.key", "id", "--json", "--backend", BACKEND], out)
    if (found := lance.dataset(f"{out}/t.lance").count_rows()) != rows:
        raise RuntimeError(f"isthmus wrote {found} rows of {rows}")
    return seconds


def clip_retrieval(case: Case, rows: int) -> float:
    """`clip-retrieval inference` over WebDataset tars, its own fast path."""
    out, tars = case.folder / "out" / "clip-retrieval", case.corpus(rows, "tars")
    last = len(list(tars.glob("*.tar"))) - 1
    program = str(case.peers / "clip-retrieval" / "bin" / "clip-retrieval")
    command = [program, "inference", "--input_dataset", f"{tars}/{{00000..{last:05d}}}.tar", "--output_folder"]
    options = {"input_format": "webdataset", "batch_size": "64", "num_prepro_workers": str(os.cpu_count())}
    options |= {"enable_text": "False", "enable_metadata": "True", "clip_model": f"hf_clip:{case.weights}"}
    return seconds_of([*command, str(out), *(word for k, v in options.items() for word in (f"--{k}", v))], out)


def script(case: Case, rows: int, python: str, name: str, workers: int) -> float:
    """Run a script of `benchmarks/peers`."""
    out = case.folder / "out" / name
    return seconds_of([python, str(_SCRIPTS / name), str(case.corpus(rows)), str(out), case.weights, str(workers)], out)


def contenders(case: Case) -> dict[str, Callable[[int], float]]:
    """Name → function that runs a job of this many rows and returns its seconds."""
    cores = os.cpu_count() or 1
    daft = str(case.peers / "daft" / "bin" / "python")
    return {
        OURS: lambda rows: ours(case, rows),
        CLIP_RETRIEVAL: lambda rows: clip_retrieval(case, rows),
        DAFT: lambda rows: script(case, rows, daft, "daft_embed.py", cores),
        RECIPE: lambda rows: script(case, rows, sys.executable, "ray_recipe.py", cores),
    }


def ceiling(case: Case) -> float:
    """Pictures per second of the bare loop, in a separate process."""
    command = [sys.executable, "-m", "benchmarks.ceiling", str(case.corpus(case.rows)), case.weights, BACKEND]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(case: Case, rounds: int, peer_rounds: int, names: Sequence[str]) -> dict[str, Any]:
    """Rows per second, whole and steady, of all contenders, and of the job and its ceiling without the peers."""
    runs = {name: run for name, run in contenders(case).items() if name in names}
    beside = turns_of(case, runs, peer_rounds) if peer_rounds else {}
    return {
        "model": case.model,
        "size": case.size,
        "rows": case.rows,
        "peers": beside,
        "alone": turns_of(case, {OURS: runs[OURS]}, rounds),
    }


def turns_of(case: Case, runs: dict[str, Callable[[int], float]], rounds: int) -> dict[str, Any]:
    """Figures of rounds. In each, a contender runs a job of few rows and one of all rows, and the ceiling runs once."""
    turns: dict[str, Callable[[], float]] = {CEILING: lambda: ceiling(case)}
    for name, run in runs.items():
        turns |= {name + _FEWER: lambda run=run: run(case.few), name: lambda run=run: run(case.rows)}
    found = take_turns(turns, rounds, warmup=0, say=lambda line: sys.stderr.write(f"{case.name}: {line}\n"))
    whole, steady, starts = {}, {CEILING: found[CEILING]}, {}
    for name in runs:
        pairs = list(zip(found[name], found[name + _FEWER], strict=True))
        whole[name] = [case.rows / seconds for seconds, _ in pairs]
        steady[name] = [(case.rows - case.few) / max(seconds - few_s, 1e-3) for seconds, few_s in pairs]
        starts[name] = statistics.median(found[name + _FEWER]) - case.few / statistics.median(steady[name])
    return {"start_s": starts, "whole": whole, "steady": steady}


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A case as rows of a table: first the rounds with the peers, then those of the job and its ceiling alone."""
    rows = []
    for rounds in filter(None, (found["peers"], found["alone"])):
        whole, steady = summary(rounds["whole"]), summary(rounds["steady"])
        rows += [
            {
                "model": found["model"],
                "pictures": found["size"],
                "rows": found["rows"],
                "rounds": len(rounds["steady"][name]),
                "": name + (", alone" if rounds is found["alone"] else ""),
                "steady rows/s": steady[name]["median"],
                "of the ceiling": f"{ratio(rounds['steady'], name, CEILING):.3f}",
                "whole rows/s": whole[name]["median"] if name in whole else "",
                "start s": round(rounds["start_s"][name], 1) if name in whole else "",
            }
            for name in steady
        ]
    return rows


def goals_of(found: dict[str, Any]) -> list[Goal]:
    """The goals of a case."""
    case, alone = f"{found['model']}, {found['size']}", found["alone"]["steady"]
    shares = [ours / bare for ours, bare in zip(alone[OURS], alone[CEILING], strict=True)]
    # A round gives a difference of two runs. With few rows, its share can exceed 1.
    spread = "by round: " + ", ".join(f"{share:.2f}" for share in shares)
    figure, target = ratio(alone, OURS, CEILING), _CEILING_GOALS[found["model"]]
    note = f"{spread}; {_WHY[case]}" if figure < target and case in _WHY else spread
    goals = [Goal(name=f"embed, {case}: steady ÷ ceiling", figure=figure, target=target, note=note)]
    for peer, wanted in _PEER_GOALS.items() if found["peers"] else ():
        for kind in ("steady", "whole"):
            figure, target = ratio(found["peers"][kind], OURS, peer), wanted if found["model"] == "small ViT" else 1.0
            goals.append(Goal(name=f"embed, {case}: {kind} ÷ {peer}", figure=figure, target=target))
    return goals


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder that keeps corpora, models and figures")
    parser.add_argument(
        "--peers",
        type=Path,
        default=None,
        help="folder of the peers that install.sh made; without it, only the job and its ceiling are measured",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the job and its ceiling")
    parser.add_argument("--peer-rounds", type=int, default=2, help="rounds that include the peers")
    parser.add_argument(
        "--cases",
        nargs="*",
        default=None,
        help="cases to measure, e.g. 'small ViT, 640 px'; default: those not kept yet",
    )
    parser.add_argument("--no-report", action="store_true", help="only print the figures of this run; keep nothing")
    given = parser.parse_args()
    names = [OURS, CLIP_RETRIEVAL, DAFT, RECIPE] if given.peers else [OURS]
    kept = given.folder / "figures"
    kept.mkdir(parents=True, exist_ok=True)
    for (model, size), rows in CASES.items():
        case = Case(model=model, size=size, rows=rows, folder=given.folder, peers=given.peers or Path())
        path = kept / f"{case.name.replace('/', '-')}.json"
        if case.name in given.cases if given.cases is not None else not path.is_file():
            found = measure(case, given.rounds, given.peer_rounds if given.peers else 0, names)
            if not found["peers"] and path.is_file():
                found["peers"] = json.loads(path.read_text())["peers"]
            sys.stderr.write(f"{json.dumps(rows_of(found), indent=1)}\n")
            if not given.no_report:
                path.write_text(json.dumps(found))
    if not given.no_report:
        all_found = [json.loads(path.read_text()) for path in sorted(kept.glob("*.json"))]
        table = [row for found in all_found for row in rows_of(found)]
        command = "python -m benchmarks.embed --folder FOLDER --peers PEERS"
        report("embed", command, {"Rows per second": table}, [goal for found in all_found for goal in goals_of(found)])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
