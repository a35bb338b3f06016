"""The `isthmus` command. It has one subcommand for each job, built from the job's config.

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

# Otherwise pydantic's messages end in a link that does not help with the job.
os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.config import Yaml
from pydantic import ValidationError
from rich.console import Console, RenderableType
from rich.text import Text

from jobs.commands import COMMANDS
from jobs.config import Report

_COMMON = Group("Every command", sort_key=100)
app = App(
    name="isthmus",
    help="Cross-modal retrieval at the scale of a corpus: embed pictures and captions into LanceDB and search.",
    help_format="plaintext",
    version="isthmus " + __import__("importlib.metadata").metadata.version("isthmus"),
)


def _say_briefly(error: CycloptsError) -> RenderableType:
    """A refused option in one line. If a config's own validation fails, the line names each field and its problem."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return Text(f"isthmus: {error}")
    problems = (f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in cause.errors())
    return Text("isthmus: " + "; ".join(problem.replace("Value error, ", "") for problem in problems))


app["--help"].group = app["--version"].group = _COMMON


def _register() -> None:
    """Add every command to the app. A two-word name is a subcommand of its first word, which also runs by itself."""
    groups: dict[str, App] = {}
    names = {command.name for command in COMMANDS}
    for command in COMMANDS:
        parent, _, child = command.name.partition(" ")
        if child:
            groups[parent].command(command.as_function(), name=child)
        elif any(name.startswith(f"{parent} ") for name in names):
            groups[parent] = App(name=parent, help=command.help)
            groups[parent].default(command.as_function())
            app.command(groups[parent])
        else:
            app.command(command.as_function(), name=parent)


_register()


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
        YAML file with the job's options. Flags override its values.
    json:
        Print the report as one JSON object on standard output.
    debug:
        Show the full traceback of an error, and log more.
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
    """Reserve standard output for the report. Output of native code and child processes goes to standard error."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        try:
            yield out
        finally:
            out.flush()
            os.dup2(out.fileno(), 1)


def _guarded(call: Callable[[], Any], out: TextIO, *, as_json: bool, debug: bool) -> int:
    """Run a job and show its report, or turn its error into one line. Return the exit code."""
    try:
        report = call()
    except CycloptsError:
        return 2
    except KeyboardInterrupt:
        print("isthmus: interrupted; committed work is kept, run the same command again", file=sys.stderr)
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
    """The message of an error. If Ray passes on an error of a worker, the message of the worker's error."""
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
    # Without wrapping, a report of one line stays one line in a log.
    Console(file=out).print(shown, soft_wrap=isinstance(shown, Text))


def main() -> None:
    """Entry point of the console script."""
    sys.exit(app.meta(exit_on_error=False) if len(sys.argv) > 1 else app.meta(["--help"]))


if __name__ == "__main__":
    main()
