"""Write the goals of all benches, with the last measurements, into `benchmarks/README.md`.

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
    """One table for each bench, under its command: goal, wanted and measured figures, note."""
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
    """The results in `benchmarks/results`, ordered by name."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def with_goals(readme: str, table: str) -> str:
    """The README's text with the table between its two markers."""
    body = re.escape(_BEGIN) + ".*?" + re.escape(_END)
    return re.sub(body, lambda _: f"{_BEGIN}\n{table}\n{_END}", readme, flags=re.DOTALL)


def main() -> int:
    """Update the README."""
    text = with_goals(README.read_text(), render(read_results()))
    README.write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
