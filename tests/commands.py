"""`isthmus` in a process of its own, as a script calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def isthmus(
    *arguments: object, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What the command printed, and its exit code.

    Args:
        arguments: after `isthmus`.
        cwd: the folder to run in.
        environment: more variables. The command starts a Ray of its own, but for tests that use `shared_ray`.
    """
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    variables = {"RAY_ADDRESS": "local"} | os.environ | (environment or {})
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False, env=variables)
