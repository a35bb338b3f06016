"""`isthmus demo`: the whole loop on real pictures: embed, train, mine, train again, evaluate, promote, search."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter
from pydantic import Field

from jobs.config import JobConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

_TOWERS = "efficientnet-lite0-stages+use-multilingual"
_PICTURES = 3_000
_HELD_OUT = "split = 'test'"
_SMALLEST = 60


@Parameter(name="*")
class DemoConfig(JobConfig):
    """Config of `isthmus demo`."""

    folder: Path = Field(default=Path("demo"), description="Where the corpus, the tables, the models and the pages go.")
    pictures: int = Field(default=_PICTURES, ge=_SMALLEST, description="How many pictures to render and embed.")
    epochs: int = Field(default=30, ge=1, description="Passes of each training over its rows.")
    full: bool = Field(default=False, description="All pictures, and the image tower's last blocks train too (hours).")


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """What the demo did."""

    corpus: dict[str, Any]
    embed: dict[str, Any]
    trained: list[dict[str, Any]]
    mined: dict[str, Any]
    evaluation: dict[str, Any]
    promotion: dict[str, Any]
    searches: list[dict[str, Any]] = field(default_factory=list)
    pages: list[str]
    table: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        found = Table("query", "unseen pictures that were found (score)", box=None, header_style="bold", pad_edge=False)
        for search in self.searches:
            hits = " · ".join(f"{hit['caption']} ({hit['score']:.2f})" for hit in search["hits"])
            found.add_row(search["query"], hits)
        embed, promotion = self.embed, self.promotion
        lines = (
            f"{embed['rows_in']:,} rows in = {embed['written']:,} written + {sum(embed['rejected'].values())} rejected"
            + (f" ({embed['skipped']:,} were there already)" if embed["skipped"] else ""),
            f"words → pictures of {self.evaluation['gallery']} concepts never trained on: {_recalls(self)}",
            f"{'promoted' if promotion['promoted'] else 'kept'}: {promotion['why']}",
            *(f"page: {page}" for page in self.pages),
            f"ask more: isthmus search {self.table} 'your words' --html page.html",
            f"{self.seconds:.0f} s",
        )
        return Group(found, Text(""), *(Text(line) for line in lines))


def _recalls(report: DemoReport) -> str:
    chance = report.evaluation["chance_R@10"]
    stages = ("heads", "with mined negatives and memory bank")
    shown = (
        f"{name} R@10 {report.evaluation[name]:.3f} ({report.evaluation[name] / chance:.0f} × chance)"
        for name in stages
    )
    return "; ".join(shown) + f"; chance {chance:.3f}"


def run(config: DemoConfig) -> DemoReport:
    """Go round the loop once. Run again, it finds most of it done.

    Raises:
        ModuleNotFoundError: the packages of the extra `demo` are not installed.
    """
    from jobs.demo_steps import Loop

    started = time.perf_counter()
    config.folder.mkdir(parents=True, exist_ok=True)
    loop = Loop(config, _TOWERS, _HELD_OUT)
    corpus = loop.render()
    embedded = loop.embed(corpus)
    first = loop.train_heads()
    mined = loop.mine()
    second = loop.train_again()
    evaluation, promotion, page = loop.evaluate_and_promote()
    searches, gallery = loop.search()
    return DemoReport(
        corpus=corpus,
        embed=embedded,
        trained=[first, second],
        mined=mined,
        evaluation=evaluation,
        promotion=promotion,
        searches=searches,
        pages=[gallery, page, *second["pages"][1:]],
        table=loop.table,
        seconds=round(time.perf_counter() - started, 1),
    )
