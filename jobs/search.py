"""`isthmus search`: the rows of a table that answer words, a picture, or a row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from cyclopts import Parameter
from pydantic import Field, model_validator

from jobs.config import JobConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipelines.retrieval.search import Hits


@Parameter(name="*")
class SearchConfig(JobConfig):
    """Config of `isthmus search`."""

    table: str = Field(description="FOLDER/NAME or s3://BUCKET/FOLDER/NAME.")
    words: str | None = Field(default=None, description="What to look for, in words.")
    image: Path | None = Field(default=None, description="What to look for, as a picture's file.")
    like: str | None = Field(default=None, description="What to look for, as a row's id.")
    k: Annotated[int, Parameter(name=("--k", "-k"))] = Field(default=10, ge=1, description="How many rows.")
    where: str | None = Field(default=None, description="SQL filter on the table's columns, applied first.")
    columns: str | None = Field(default=None, description="Columns to show, a,b,c; default: all but vectors.")
    vector: str | None = Field(default=None, description="Vector column to search: image_vector or text_vector.")
    full_text: bool = Field(default=False, description="Search the captions' words (BM25), without a model.")
    distinct: bool = Field(default=False, description="At most one row of each item.")
    encoder: str | None = Field(default=None, description="Must be the table's own; default: the one it names.")
    original: bool = Field(default=False, description="Ask the table itself, though another was promoted.")
    html: Path | None = Field(default=None, description="Write a self-contained page with pictures.")
    storage_options: dict[str, str] = Field(default_factory=dict, repr=False, description="How to reach the store.")
    corpus_storage_options: dict[str, str] = Field(
        default_factory=dict, repr=False, description="The same for the corpus' pictures, for the page."
    )

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        asked = [name for name in ("words", "image", "like") if getattr(self, name) is not None]
        if len(asked) != 1:
            raise ValueError(f"give one of WORDS, --image and --like; got {' and '.join(asked) or 'none'}")
        return self


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """What was found."""

    table: str
    query: str
    hits: Hits
    page: str | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {
            "table": self.table,
            "query": self.query,
            "column": self.hits.column,
            "exact": self.hits.exact,
            "hits": self.hits.to_list(),
            "page": self.page,
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        from jobs.display import rows_table

        rows = self.hits.to_list()
        title = Text(f"{self.query}  ({self.hits.column})", style="bold")
        if not rows:
            return Group(title, Text("nothing was found"))
        return Group(title, rows_table(rows), *([Text(f"page: {self.page}")] if self.page else []))


def run(config: SearchConfig) -> SearchReport:
    """Search a table.

    Raises:
        FileNotFoundError: there is no such table, or no such picture.
        ValueError: the query does not fit the table.
    """
    from pipelines.retrieval.search import Query, search
    from pipelines.storage import Storage, TableRef

    table = TableRef.parse(config.table, Storage.from_options(config.storage_options))
    picture = config.image.read_bytes() if config.image is not None else None
    query = Query(
        words=config.words,
        image=picture,
        like=config.like,
        k=config.k,
        where=config.where,
        columns=tuple(name.strip() for name in config.columns.split(",")) if config.columns else None,
        vector_column=config.vector,
        full_text=config.full_text,
        distinct=config.distinct,
        encoder=config.encoder,
        original=config.original,
    )
    hits = search(table, query)
    title = config.words or (f"like {config.like}" if config.like else str(config.image))
    page = None
    if config.html is not None:
        from pipelines.retrieval.gallery import Section, write_page

        section = Section(title=title, hits=hits, picture=picture)
        storage = Storage.from_options(config.corpus_storage_options)
        page = str(write_page(config.html, f"{table.name}: {title}", [section], storage))
    return SearchReport(table=str(table), query=title, hits=hits, page=page)
