"""`isthmus demo`: real pictures, from a package to a page of answers."""

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

    from pipelines.retrieval.search import Query

_ENCODER = "efficientnet-lite0+use-multilingual"
_WORDS = ("a happy face", "something to eat", "wild animal", "一只狗", "下雨", "水果")
_PICTURES = 1_500
_LIKE = 3
_HITS = 6


@Parameter(name="*")
class DemoConfig(JobConfig):
    """Config of `isthmus demo`."""

    folder: Path = Field(default=Path("demo"), description="Where the corpus, the table and the page go.")
    pictures: int = Field(default=_PICTURES, ge=3, description="How many pictures to render and embed.")
    full: bool = Field(default=False, description="All pictures, in place of --pictures.")


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """What the demo did."""

    corpus: dict[str, Any]
    embed: dict[str, Any]
    searches: list[dict[str, Any]] = field(default_factory=list)
    page: str
    table: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        found = Table("query", "found (score)", box=None, header_style="bold", pad_edge=False)
        for search in self.searches:
            hits = " · ".join(f"{hit['caption']} ({hit['score']:.2f})" for hit in search["hits"])
            found.add_row(search["query"], hits)
        embed = self.embed
        lines = (
            f"{embed['rows_in']:,} rows in = {embed['written']:,} written + {sum(embed['rejected'].values())} rejected"
            + (f" ({embed['skipped']:,} were there already)" if embed["skipped"] else ""),
            f"page with pictures: {self.page}",
            f"ask more: isthmus search {self.table} 'your words' --html page.html",
        )
        return Group(found, Text(""), *(Text(line) for line in lines))


def run(config: DemoConfig) -> DemoReport:
    """Build the corpus, embed it, index it, search it, and write the page.

    Raises:
        ModuleNotFoundError: the packages of the extra `demo` are not installed.
    """
    import jobs.embed
    import jobs.index
    from jobs.display import row_progress, say
    from pipelines.corpora.openmoji import build

    started = time.perf_counter()
    config.folder.mkdir(parents=True, exist_ok=True)
    size = "all" if config.full else str(config.pictures)
    table = str(config.folder / "db" / f"openmoji_{size}")
    say("rendering OpenMoji drawings into a Parquet corpus")
    with row_progress("rendering") as progress:
        corpus = build(
            config.folder / f"corpus_{size}", pictures=None if config.full else config.pictures, progress=progress
        )
    say(f"embedding {corpus.pictures:,} pictures of {corpus.concepts:,} concepts, with English and Chinese names")
    embed_config = jobs.embed.EmbedConfig(
        corpus=corpus.path,
        table=table,
        encoder=_ENCODER,
        columns={"key": "key", "item": "item"},
        thumbnails=128,
        commit_interval_s=15.0,
    )
    with row_progress("embedding") as progress:
        embedded = jobs.embed.run(embed_config, progress)
    say("indexing")
    jobs.index.run(jobs.index.IndexConfig(table=table))
    say("searching")
    searches, page = _search(table, config.folder / "demo.html")
    return DemoReport(
        corpus=corpus.to_dict(),
        embed=embedded.to_dict(),
        searches=searches,
        page=str(page),
        table=table,
        seconds=round(time.perf_counter() - started, 1),
    )


def _search(table: str, page: Path) -> tuple[list[dict[str, Any]], Path]:
    """The searches of the demo, as data and as a page."""
    from pipelines.corpora.openmoji import ATTRIBUTION
    from pipelines.retrieval.gallery import Section, write_page
    from pipelines.retrieval.search import search
    from pipelines.storage import Storage, TableRef

    ref = TableRef.parse(table)
    sections = []
    for title, query, picture in _queries(ref):
        sections.append(Section(title=title, hits=search(ref, query), picture=picture))
    write_page(page, "isthmus demo", sections, Storage.from_options(), ATTRIBUTION)
    searches = [{"query": s.title, "hits": s.hits.to_list()} for s in sections]
    return searches, page


def _queries(ref: Any) -> list[tuple[str, Query, bytes | None]]:
    """(title, query, picture): words to captions, and pictures to pictures of other concepts."""
    from pipelines.contract import CAPTION, ROW_ID, THUMBNAIL
    from pipelines.retrieval.search import Query
    from pipelines.sink.tables import open_dataset

    columns = (CAPTION, "keywords", "size")
    queries: list[tuple[str, Query, bytes | None]] = [
        (words, Query(words=words, k=_HITS, distinct=True, columns=columns), None) for words in _WORDS
    ]
    dataset = open_dataset(ref)
    step = max(1, dataset.count_rows() // _LIKE)
    places = [i * step for i in range(_LIKE)][: dataset.count_rows()]
    rows = dataset.take(places, columns=[ROW_ID, CAPTION, THUMBNAIL]).to_pylist()
    for row in rows:
        query = Query(like=row[ROW_ID], k=_HITS, distinct=True, columns=columns)
        queries.append((f"pictures like “{row[CAPTION]}”", query, row[THUMBNAIL]))
    return queries
