"""A GPU is available for minutes: a script that then fails, hangs or loses its measurements has wasted them."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bare import bare_environment

from benchmarks.gpu import follows
from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.base import Bench, Row, Skip, Step, check, goal, run_steps
from benchmarks.gpu.results import PartResult, Results
from benchmarks.gpu.runner import Part, Run
from benchmarks.gpu.words import SMALL, VIT_B, best_rate, per_core

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NEEDS = ("torch", "transformers", "Pillow", "numpy", "pyarrow", "safetensors")
OWN = ("benchmarks", "encoders")
# On a busy machine it takes several times as long as on an idle one.
MINUTES = 4.0
# Packages that a bare machine lacks: those of the towers, and peft.
ABSENT = ("efficientnet-lite0", "minilm", "LoRA")
MODULES = sorted(path.stem for path in (ROOT / "benchmarks" / "gpu").glob("*.py"))


def run_command(folder: Path, environment: dict[str, str], python: str = sys.executable) -> subprocess.CompletedProcess:
    command = [python, "-m", "benchmarks.gpu", "--device", "cpu", "--minutes", str(MINUTES), "--out", str(folder)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=MINUTES * 60, check=False
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return bare_environment(tmp_path_factory.mktemp("bare"), ROOT, NEEDS, OWN)


@pytest.fixture(scope="module")
def miniature(bare: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The output of the command in a bare environment."""
    folder = tmp_path_factory.mktemp("out")
    done = run_command(folder, bare)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (folder / "gpu.md").read_text() == done.stdout
    return json.loads((folder / "gpu.json").read_text())


def test_the_bare_environment_is_bare(bare: dict[str, str]) -> None:
    """Otherwise the next tests would not cover a machine without Ray."""
    absent = ("ray", "lance", "lancedb", "blake3", "platformdirs", "psutil", "openvino", "peft")
    program = f"""
        import importlib.util, encoders, torch, transformers, PIL, numpy, pyarrow, safetensors
        assert encoders.__file__.startswith({str(ROOT)!r}), encoders.__file__
        print([name for name in {(*absent, "cykooz_resizer", "pipelines", "jobs")!r} if importlib.util.find_spec(name)])
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_it_needs_nothing_but_encoders_and_a_machine_for_deep_learning(miniature: dict[str, Any]) -> None:
    assert list(miniature["parts"]) == [part.name for part in PARTS]
    assert {name: part["status"] for name, part in miniature["parts"].items()} == dict.fromkeys(
        miniature["parts"], "done"
    )
    assert miniature["finished"]


def test_in_miniature_all_is_measured_but_what_is_for_cuda(miniature: dict[str, Any]) -> None:
    """A part that is silently left out here would run for the first time on the GPU."""
    skipped = {row["what"]: row["note"] for part in miniature["parts"].values() for row in part["rows"]
               if row["status"] == "skipped"}  # fmt: skip
    modules = [importlib.import_module(part.module) for part in PARTS if part.name != "follows"]
    cuda_only = {step.name for module in modules for step in module.STEPS if step.cuda_only}
    assert {what for what, note in skipped.items() if note == "CUDA only"} == cuda_only
    assert all(what.startswith(ABSENT) for what in skipped.keys() - cuda_only), skipped


def test_each_figure_of_the_miniature_is_a_number_or_a_word(miniature: dict[str, Any]) -> None:
    rows = [row for part in miniature["parts"].values() for row in part["rows"] if row["status"] == "done"]
    assert len(rows) > 80
    assert all(row["figure"] not in (None, "") for row in rows)
    assert all(row["figure"] >= 0 for row in rows if isinstance(row["figure"], float))


@pytest.mark.heavy
def test_it_runs_in_an_environment_that_pip_made(tmp_path: Path) -> None:
    """The bare environment above only pretends."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pins = ["torch==2.13.0", "transformers==5.17.0", *NEEDS[2:]]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = run_command(tmp_path / "out", environment, python)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


# The runner, with parts of its own.

STEPS = {
    "fine": "yield Row(what='process', figure=float(os.getpid()))",
    "raising": "yield Row(what='before'); raise RuntimeError('a bug')",
    "hanging": "yield Row(what='before'); time.sleep(1000)",
    "crashing": "yield Row(what='before'); os.kill(os.getpid(), signal.SIGSEGV)",
    "wrong": "yield check('a cosine', 0.5, 0.999)",
    "later": "yield Row(what='process', figure=float(os.getpid()))",
}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    """One part per kind of step, in modules that the worker can import."""
    monkeypatch.syspath_prepend(str(tmp_path))
    head = "import os, signal, time\nfrom benchmarks.gpu.base import Row, Step, check\ndef run(bench):\n    "
    for name, body in STEPS.items():
        (tmp_path / f"gpu_part_{name}.py").write_text(f"{head}{body}\nSTEPS = (Step(name='{name}', run=run),)\n")
    return {name: Part(name=name, about="", module=f"gpu_part_{name}", share=1) for name in STEPS}


def run_parts(folder: Path, parts: list[Part], limit_s: float) -> Results:
    results = Results(folder=folder / "out", command="", device="cpu")
    Run(results, Bench(device="cpu", folder=folder), limit_s, warm=()).all(parts)
    return results


@pytest.mark.parametrize("bad", ["raising", "crashing", "wrong"])
def test_a_part_that_fails_does_not_end_the_rest(bad: str, parts: dict[str, Part], tmp_path: Path) -> None:
    results = run_parts(tmp_path, [parts["fine"], parts[bad], parts["later"]], 60)
    assert [part.status for part in results.parts.values()] == ["done", "wrong" if bad == "wrong" else "failed", "done"]
    assert results.failed == [bad]
    if bad != "wrong":
        assert results.parts[bad].rows[0].what == "before", "what it had found is kept"
        # CUDA does not recover from some errors.
        first, second = (results.parts[name].rows[0].figure for name in ("fine", "later"))
        assert first != second, "the next part has a new process"


def test_a_part_that_hangs_is_stopped_and_the_next_one_runs(parts: dict[str, Part], tmp_path: Path) -> None:
    started = time.monotonic()
    results = run_parts(tmp_path, [replace(parts["hanging"], share=0.1), parts["later"]], 24)
    assert time.monotonic() - started < 24
    assert [part.status for part in results.parts.values()] == ["failed", "done"]
    assert "stopped at its limit" in results.parts["hanging"].rows[-1].note


def test_a_part_for_which_no_time_is_left_says_so(parts: dict[str, Part], tmp_path: Path) -> None:
    long = Part(name="long", about="", module="gpu_part_fine", share=1, least_s=1000)
    results = run_parts(tmp_path, [long, parts["later"]], 30)
    assert [part.status for part in results.parts.values()] == ["skipped", "done"]
    assert "takes 1000 s at least" in results.parts["long"].rows[0].note


def test_a_killed_run_keeps_what_it_had_and_leaves_no_process(parts: dict[str, Part], tmp_path: Path) -> None:
    program = f"""
        import sys
        sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
        from pathlib import Path
        from benchmarks.gpu.base import Bench
        from benchmarks.gpu.results import Results
        from benchmarks.gpu.runner import Part, Run
        if __name__ == "__main__":
            folder = Path({str(tmp_path)!r})
            results = Results(folder=folder / "out", command="", device="cpu")
            parts = [Part(name=n, about="", module="gpu_part_" + n, share=1) for n in ("fine", "hanging")]
            Run(results, Bench(device="cpu", folder=folder), 12, warm=()).all(parts)
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(program))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    found = wait_for(lambda: written(tmp_path / "out" / "gpu.json", "hanging"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert not found["finished"]
    assert "Not finished" in (tmp_path / "out" / "gpu.md").read_text()
    assert [part["status"] for part in found["parts"].values()] == ["done", "running"]
    worker = int(found["parts"]["fine"]["rows"][0]["figure"])
    wait_for(lambda: not Path(f"/proc/{worker}").exists() or None)


def written(path: Path, part: str) -> bool | None:
    found = json.loads(path.read_text()) if path.is_file() else {"parts": {}}
    return True if found["parts"].get(part, {}).get("rows") else None


def wait_for(look: Any, limit_s: float = 60.0) -> Any:
    ends_at = time.monotonic() + limit_s
    while (found := look()) is None:
        assert time.monotonic() < ends_at
        time.sleep(0.05)
    return found


# Steps and rows.


def steps_of(*runs: Any, **options: Any) -> list[Step]:
    return [Step(name=f"step {i}", run=run, **options) for i, run in enumerate(runs)]


def test_a_step_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    def broken(bench: Bench) -> list[Row]:
        raise ValueError("no | such\nthing")

    def absent(bench: Bench) -> list[Row]:
        raise Skip("peft is not installed")

    bench = Bench(device="cpu", folder=tmp_path)
    rows = list(run_steps(steps_of(broken, absent, lambda bench: [Row(what="figure")]), bench))
    assert [row.status for row in rows] == ["failed", "skipped", "done"]
    assert [row.note for row in rows[:2]] == ["ValueError: no / such", "peft is not installed"]


def test_a_step_that_would_run_past_the_limit_is_skipped_and_says_so(tmp_path: Path) -> None:
    bench = Bench(device="cuda", folder=tmp_path, ends_at=time.monotonic() + 5)
    (row,) = run_steps(steps_of(lambda bench: [Row(what="figure")], least_s=100), bench)
    assert row.status == "skipped"
    assert row.note.startswith("takes 1e+02 s at least")


def test_a_figure_that_is_no_number_holds_no_check() -> None:
    """Comparisons with NaN are false, the bound of a cosine included."""
    assert check("cosine", math.nan, 0.999).status == "wrong"
    assert check("difference", math.nan, 1e-5, at_least=False).status == "wrong"
    assert check("cosine", 0.9995, 0.999).status == "done"
    missed = goal("share", 0.5, 0.95)
    assert (missed.status, missed.met) == ("done", False), "a goal may be missed"


def test_what_follows_is_computed_from_the_parts_before(tmp_path: Path) -> None:
    figures = [Row(what=best_rate(VIT_B), figure=20_000.0), Row(what=per_core(SMALL), figure=400.0)]
    part = PartResult(about="", rows=figures, seconds=1.0)
    results = Results(folder=tmp_path, command="", device="cuda", parts={"fast": part})
    found = {row.what: row.figure for row in follows.rows(results)}
    assert found[f"{VIT_B}: decoding cores for a GPU, {SMALL}"] == pytest.approx(50)
    assert found[f"{VIT_B}: a billion pictures"] == pytest.approx(1e9 / 20_000 / 3600 * follows.DOLLARS_AN_HOUR)
    assert [row.what for row in follows.rows(results) if row.status == "skipped"] == ["ViT-L/14"]


@pytest.mark.parametrize("module", MODULES)
def test_each_file_can_be_imported_and_says_what_it_is(module: str) -> None:
    assert importlib.import_module("benchmarks.gpu" if module == "__init__" else f"benchmarks.gpu.{module}").__doc__
