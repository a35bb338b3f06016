"""The `isthmus` command: one subcommand a job, all made from the jobs' configs.

Nothing heavy is imported before a job runs: `isthmus --help` loads neither torch nor ray.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

# Pydantic's messages otherwise end in a link that says nothing about the job.
os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.config import Yaml
from pydantic import ValidationError
from rich.console import Console, RenderableType
from rich.text import Text

from jobs.calibrate import CalibrateConfig
from jobs.config import Report
from jobs.corpus import CorpusConfig
from jobs.dedup import DedupConfig
from jobs.demo import DemoConfig
from jobs.embed import EmbedConfig
from jobs.encoders import EncodersConfig
from jobs.evaluate import EvaluateConfig
from jobs.exchange import ExportConfig, ImportConfig
from jobs.explore import ExploreConfig
from jobs.finetune import FinetuneConfig
from jobs.finetune_reranker import FinetuneRerankerConfig
from jobs.fuse import FuseConfig
from jobs.index import IndexConfig
from jobs.info import InfoConfig
from jobs.maintain import MaintainConfig
from jobs.mine import MineConfig
from jobs.plan import PlanConfig
from jobs.promote import PromoteConfig
from jobs.rejects import RejectsConfig, RetryConfig
from jobs.search import SearchConfig
from jobs.search_many import SearchManyConfig
from jobs.serve import ServeConfig
from jobs.sql import SqlConfig
from jobs.sync import SyncConfig

# Jobs whose every option has a default.
_ENCODERS, _DEMO = EncodersConfig(), DemoConfig()
_COMMON = Group("Every command", sort_key=100)
app = App(
    name="isthmus",
    help="Cross-modal retrieval at the scale of a corpus: embed pictures and captions into LanceDB, search them.",
    help_format="plaintext",
    version="isthmus " + __import__("importlib.metadata").metadata.version("isthmus"),
)


def _say_briefly(error: CycloptsError) -> RenderableType:
    """A refused option as one line; of a config that refuses itself, each field with its problem."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return Text(f"isthmus: {error}")
    problems = (f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in cause.errors())
    return Text("isthmus: " + "; ".join(problem.replace("Value error, ", "") for problem in problems))


app["--help"].group = app["--version"].group = _COMMON


@app.command
def embed(config: EmbedConfig) -> Report:
    """Embed a corpus into a LanceDB table; started again, it goes on where it stopped."""
    from jobs.display import row_progress
    from jobs.embed import run

    with row_progress("embedding") as progress:
        return run(config, progress)


@app.command
def sync(config: SyncConfig) -> Report:
    """Make a table mirror its corpus: embed what is new, replace what changed, remove what is gone."""
    from jobs.display import row_progress
    from jobs.sync import run

    with row_progress("embedding") as progress:
        return run(config, progress)


@app.command
def finetune(config: FinetuneConfig) -> Report:
    """Fine-tune an encoder contrastively on a corpus; started again, it goes on from its last checkpoint."""
    from jobs.display import training_table
    from jobs.finetune import run

    with training_table() as on_row:
        return run(config, on_row)


@app.command
def finetune_reranker(config: FinetuneRerankerConfig) -> Report:
    """Fine-tune a cross-encoder on a table's pairs against mined negatives; started again, it goes on."""
    from jobs.display import row_progress
    from jobs.finetune_reranker import run

    with row_progress("training") as progress:
        return run(config, progress)


@app.command
def evaluate(config: EvaluateConfig) -> Report:
    """Measure retrieval exactly: text to image, image to text, image to image, with intervals."""
    from jobs.evaluate import run

    return run(config)


@app.command
def index(config: IndexConfig) -> Report:
    """Build the vector, full-text and scalar indexes of a table."""
    from jobs.index import run

    return run(config)


@app.command
def calibrate(config: CalibrateConfig) -> Report:
    """Fit, on a table's own pairs, how likely a hit of some score is a match; search then says so."""
    from jobs.calibrate import run

    return run(config)


@app.command
def search(config: SearchConfig) -> Report:
    """Search a table by words, pictures, rows or a vector, alone or composed."""
    from jobs.search import run

    return run(config)


@app.command
def search_many(config: SearchManyConfig) -> Report:
    """Search a table by a file of queries, or by another table, in bulk; started again, it goes on."""
    from jobs.display import row_progress
    from jobs.search_many import run

    with row_progress("searching") as progress:
        return run(config, progress)


@app.command
def sql(config: SqlConfig) -> Report:
    """Run one SQL statement over tables, with similarity to words, pictures and rows as functions."""
    from jobs.sql import run

    return run(config)


@app.command
def serve(config: ServeConfig) -> Report:
    """Serve a web page and an HTTP API over tables, until interrupted."""
    from jobs.serve import run

    return run(config)


@app.command
def export(config: ExportConfig) -> Report:
    """Write a table as arrays beside Parquet (clip-retrieval, embedding-reader), or as Parquet."""
    from jobs.exchange import run_export

    return run_export(config)


@app.command(name="import")
def import_(config: ImportConfig) -> Report:
    """Make a table of embeddings that clip-retrieval or `isthmus export` wrote."""
    from jobs.exchange import run_import

    return run_import(config)


@app.command
def dedup(config: DedupConfig) -> Report:
    """Mark the rows that add nothing to an earlier row, by content and by vectors; none is deleted."""
    from jobs.dedup import run

    return run(config)


@app.command
def fuse(config: FuseConfig) -> Report:
    """Give each row one vector of its picture and its caption, in a column to be searched as one."""
    from jobs.fuse import run

    return run(config)


@app.command
def explore(config: ExploreConfig) -> Report:
    """Draw a map of a table's vectors, with its clusters, outliers, near-duplicates and mismatched pairs."""
    from jobs.explore import run

    return run(config)


@app.command
def info(config: InfoConfig) -> Report:
    """Show a table: rows, columns, provenance, indexes, versions."""
    from jobs.info import run

    return run(config)


@app.command
def maintain(config: MaintainConfig) -> Report:
    """Merge a table's small files, refresh its indexes, remove old versions and orphaned files; safe from cron."""
    from jobs.maintain import run

    return run(config)


@app.command
def mine(config: MineConfig) -> Report:
    """Mine hard negatives from a table's own vectors, for finetuning."""
    from jobs.mine import run

    return run(config)


@app.command
def plan(config: PlanConfig) -> Report:
    """Say what `embed` with the same options would do, take and cost; changes nothing."""
    from jobs.plan import run

    return run(config)


@app.command
def promote(config: PromoteConfig) -> Report:
    """Let a new encoder's vectors answer for a table, if they are measurably better; or go back."""
    from jobs.promote import run

    return run(config)


_rejects = App(name="rejects", help="Show the rows of a table's corpus that could not be embedded, and why.")
app.command(_rejects)


@_rejects.default
def rejects(config: RejectsConfig) -> Report:
    """Show the rows of a table's corpus that could not be embedded, and why."""
    from jobs.rejects import run

    return run(config)


@_rejects.command(name="retry")
def rejects_retry(config: RetryConfig) -> Report:
    """Try rows again that were rejected for a reason that may have passed."""
    from jobs.display import row_progress
    from jobs.rejects import retry

    with row_progress("retrying") as progress:
        return retry(config, progress)


@app.command
def encoders(config: EncodersConfig = _ENCODERS) -> Report:
    """List the encoders that are here, or describe one."""
    from jobs.encoders import run

    return run(config)


@app.command
def corpus(config: CorpusConfig) -> Report:
    """Fetch real pictures with an open licence and their names, as a Parquet corpus."""
    from jobs.corpus import run
    from jobs.display import row_progress

    with row_progress("pictures") as progress:
        return run(config, progress)


@app.command
def demo(config: DemoConfig = _DEMO) -> Report:
    """Build a corpus of real pictures, embed it, and search it in English and Chinese."""
    from jobs.demo import run

    return run(config)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(group=_COMMON)] = None,
    json: Annotated[bool, Parameter(group=_COMMON, negative="")] = False,
    debug: Annotated[bool, Parameter(group=_COMMON, negative="")] = False,
) -> int:
    """Run a subcommand.

    Parameters
    ----------
    config:
        YAML file with the job's options; flags win over it.
    json:
        Print one JSON object on standard output.
    debug:
        Show the whole traceback of an error, and log more.
    """
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    if config is not None:
        app.config = [Yaml(config, must_exist=True, use_commands_as_keys=False, allow_unknown=False)]

    def call() -> Any:
        return app(tokens, result_action="return_value", exit_on_error=False, error_formatter=_say_briefly)

    with _clean_stdout() as out:
        return _guarded(call, out, as_json=json, debug=debug)


@contextmanager
def _clean_stdout() -> Iterator[TextIO]:
    """Standard output for the report alone: what native code and child processes print goes to standard error."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        try:
            yield out
        finally:
            out.flush()
            os.dup2(out.fileno(), 1)


def _guarded(call: Callable[[], Any], out: TextIO, *, as_json: bool, debug: bool) -> int:
    """Run a job, show what it returns, and turn what it raises into one line and an exit code."""
    try:
        report = call()
    except CycloptsError:
        return 2
    except KeyboardInterrupt:
        print("isthmus: interrupted; what was committed is kept, the same command goes on", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"isthmus: {_one_line(error)}", file=sys.stderr)
        return 1
    if report is not None:
        _show(report, out, as_json=as_json)
    return 0


def _one_line(error: BaseException) -> str:
    """The message of an error; of one that Ray brings from a worker, the message that the worker raised."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and cause is not error:
        return _one_line(cause)
    known = isinstance(error, (ValueError, OSError, RuntimeError, ImportError, KeyError))
    text = str(error) or type(error).__name__
    return text if known else f"{type(error).__name__}: {text}"


def _show(report: Report, out: TextIO, *, as_json: bool) -> None:
    if as_json:
        json.dump(report.to_dict(), out, ensure_ascii=False, default=str)
        out.write("\n")
        return
    from jobs.display import render

    shown = render(report)
    # A report of one line stays one line in a log.
    Console(file=out).print(shown, soft_wrap=isinstance(shown, Text))


def main() -> None:
    """Entry point of the console script."""
    sys.exit(app.meta(exit_on_error=False) if len(sys.argv) > 1 else app.meta(["--help"]))


if __name__ == "__main__":
    main()
