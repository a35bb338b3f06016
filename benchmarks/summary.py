"""The goals of all benches, as they were last measured, in `benchmarks/README.md`.

python -m benchmarks.summary
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, Goal, goal_rows, markdown

README = Path(__file__).parent / "README.md"
_BEGIN, _END = "<!-- goals -->", "<!-- end of goals -->"


def render(results: list[dict[str, Any]]) -> str:
    """A table a bench: goal, what was wanted and measured, why a goal was missed; its command on top."""
    parts = []
    for result in results:
        if not result["goals"]:
            continue
        names = Goal.__dataclass_fields__
        goals = [Goal(**{name: value for name, value in goal.items() if name in names}) for goal in result["goals"]]
        title = f"### {result['bench']}\n\n`{result['command']}` ([figures](results/{result['bench']}.md))"
        parts.append(f"{title}\n\n{markdown(goal_rows(goals))}")
    return "\n\n".join(parts)


def read_results() -> list[dict[str, Any]]:
    """What the benches left in `benchmarks/results`, by name."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def with_goals(readme: str, table: str) -> str:
    """The text with the table between the two marks."""
    body = re.escape(_BEGIN) + ".*?" + re.escape(_END)
    return re.sub(body, lambda _: f"{_BEGIN}\n{table}\n{_END}", readme, flags=re.DOTALL)


def main() -> int:
    """Write it."""
    text = with_goals(README.read_text(), render(read_results()))
    README.write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
