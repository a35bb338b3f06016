"""The command. See `benchmarks.gpu`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu.base import Bench
from benchmarks.gpu.results import Results
from benchmarks.gpu.runner import Part, Run, watch
from benchmarks.harness import RESULTS

PARTS = (
    Part(name="machine", about="what it computes and copies at best", module="benchmarks.gpu.machine", share=4),
    Part(name="right", about="vectors beside the CPU's in fp32", module="benchmarks.gpu.right", share=18),
    Part(name="fast", about="the encode call beside its ceiling", module="benchmarks.gpu.fast", share=30),
    Part(name="fed", about="the cores that decode for a GPU", module="benchmarks.gpu.fed", share=12),
    Part(name="memory", about="batches that do not fit", module="benchmarks.gpu.memory", share=6),
    Part(name="training", about="steps, GradCache, adapters", module="benchmarks.gpu.training", share=30),
    Part(name="follows", about="the line for docs/scale.md", module="benchmarks.gpu.follows", share=0.1),
)


def main() -> int:
    """Measure; 0 if no part failed."""
    args = _arguments()
    watch(args.minutes * 60)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Nothing is fetched, whatever a library would like to look up.
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if args.device == "cpu":
        os.environ["OMP_NUM_THREADS"] = "1"  # Tiny models gain nothing by more, and suffer where others work too.
    command = f"python -m benchmarks.gpu --minutes {args.minutes:g} --device {args.device}"
    results = Results(folder=args.out, command=command, device=args.device)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(results, Bench(device=args.device, folder=Path(folder)), args.minutes * 60)
        run.all([part for part in PARTS if args.only in (None, part.name)])
    sys.stdout.write(results.markdown())
    return int(bool(results.failed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="the run ends by itself within so many")
    parser.add_argument("--out", type=Path, default=None, help="folder for gpu.json and gpu.md (benchmarks/results)")
    parser.add_argument("--only", choices=[part.name for part in PARTS], default=None, help="one part alone")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: in miniature")
    args = parser.parse_args()
    if args.out is None and args.device == "cpu":
        parser.error("--device cpu is the miniature, which has no place among the results: give --out FOLDER")
    args.out = args.out or RESULTS
    return args


if __name__ == "__main__":
    raise SystemExit(main())
