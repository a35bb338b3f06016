"""The reference of the commands, made from the table of commands: `python docs/tools/cli_reference.py` prints it."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_HEAD = """# Commands

Each command takes the options below and three more: `--config FILE.yaml` reads options from a file (flags win over it),
`--json` prints one JSON object on standard output, and `--debug` shows the traceback of an error and logs more.
A required option can be given by position, in the order of its table, or by name. A command exits with 0 only if it did
what it was asked to do; it exits with 2 if an option is wrong and with 1 if the work failed.

This page is made from `jobs/commands.py`.

"""


def type_name(kind: Any) -> str:
    """A type as a user of the command line thinks of it.

    >>> type_name(Literal["a", "b"]), type_name(list[str]), type_name(int | None)
    ('a, b', 'text, repeatable', 'integer')
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(str(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(part) for part in parts if part is not type(None)))
    if origin in (list, tuple, set, frozenset):
        inner = next((type_name(part) for part in parts if part is not Ellipsis), "text")
        return f"{inner}, repeatable"
    if origin is dict:
        return ".KEY VALUE"
    names = {str: "text", int: "integer", float: "number", bool: "flag", Path: "path"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def option_row(name: str, info: FieldInfo) -> str:
    """The row of one option in the table of its command."""
    flag = name.replace("_", "-")
    cells = (f"`--{flag}`", type_name(info.annotation), _default(info), info.description or "")
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def command_section(command: Any) -> str:
    """A command: its usage, its line of help, its options."""
    fields = command.config.model_fields
    required = [name.replace("_", "-") for name, info in fields.items() if info.is_required()]
    usage = " ".join([f"isthmus {command.name}", *(name.upper() for name in required), "[OPTIONS]"])
    rows = [option_row(name, info) for name, info in fields.items()]
    table = "\n".join(["| option | type | default | meaning |", "|---|---|---|---|", *rows]) if rows else "No options."
    return f"## isthmus {command.name}\n\n{command.help}\n\n```\n{usage}\n```\n\n{table}\n"


def cli_reference() -> str:
    """The page."""
    from jobs.commands import COMMANDS

    return _HEAD + "\n".join(command_section(command) for command in COMMANDS)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or value is None or value in ({}, [], ()):
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.stdout.write(cli_reference())
