"""`isthmus search`: search a table by words, pictures, rows, a vector, or any combination of these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from cyclopts import Parameter
from pydantic import Field, field_validator, model_validator

from jobs.config import CorpusStoreConfig, TableConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipelines.rows.hits import Hits
    from pipelines.search.retrieval.queries import Query


@Parameter(name="*")
class SearchConfig(TableConfig, CorpusStoreConfig):
    """Config of `isthmus search`."""

    table: str = Field(
        description="The table to search: FOLDER/NAME or "
        "s3://BUCKET/FOLDER/NAME. Append @VERSION or @TAG for an older version."
    )
    words: str | None = Field(default=None, description="Words to search for.")
    image: list[Path] = Field(default_factory=list, description="Picture file to search for; repeat it for several.")
    like: list[str] = Field(
        default_factory=list, description="Id of a row to search for similar rows; repeat it for several."
    )
    query_vector: Path | None = Field(
        default=None, description="Vector to search for: a .npy file with one row of floats."
    )
    not_words: list[str] = Field(
        default_factory=list, description="Words that the hits should be unlike; repeat it for several."
    )
    not_image: list[Path] = Field(
        default_factory=list, description="Picture file that the hits should be unlike; repeat it for several."
    )
    not_like: list[str] = Field(
        default_factory=list, description="Id of a row that the hits should be unlike; repeat it for several."
    )
    not_weight: float = Field(
        default=0.5,
        gt=0,
        description="Weight of each --not-words, --not-image and "
        "--not-like; every other part of the query has weight 1.",
    )
    k: Annotated[int, Parameter(name=("--k", "-k"))] = Field(default=10, ge=1, description="Number of hits.")
    skip: int = Field(default=0, ge=0, description="Skip this many of the best hits, to get the next page.")
    where: str | None = Field(
        default=None, description="SQL filter of the rows to search, applied before the search; default: all rows."
    )
    columns: str | None = Field(default=None, description="Columns to show, as a,b,c; default: all except vectors.")
    vector: str | None = Field(
        default=None,
        description="Vector column to search: image_vector, text_vector or fused_vector (made by "
        "isthmus fuse). Several, as a,b, are searched separately and their rankings are fused.",
    )
    full_text: bool = Field(
        default=False, description="Search the words of the captions (BM25) instead of vectors; needs no model."
    )
    hybrid: bool = Field(
        default=False, description="Fuse the ranking by vectors with the ranking by the captions' words."
    )
    fusion: Literal["rank", "score"] = Field(
        default="rank", description="How to fuse rankings. rank: by reciprocal ranks. score: by scores scaled to 0 … 1."
    )
    fusion_weights: str | None = Field(
        default=None,
        description="Weights of the fused rankings, as 0.7,0.3, in the order "
        "of --vector; the captions' words come last. Default: equal weights.",
    )
    diversity: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Diversity of the hits (MMR), from 0 (the best rows) to 1 (rows unlike the hits above them).",
    )
    distinct: bool = Field(default=False, description="Return at most one row of each item.")
    rerank: str | None = Field(
        default=None,
        description="Cross-encoder that reorders the best hits: BLIP, ViLT or BridgeTower, a directory or a hub id.",
    )
    rerank_depth: int = Field(default=100, ge=1, description="Number of top-ranked rows that --rerank reorders.")
    encoder: str | None = Field(
        default=None,
        description="Encoder of the query. It must be the encoder "
        "that made the table; default: the one that the table names.",
    )
    original: bool = Field(
        default=False, description="Search the table itself, even if another table was promoted in its place."
    )
    html: Path | None = Field(
        default=None, description="Write the hits and their pictures to this file, as a self-contained HTML page."
    )

    @field_validator("image", "like", "not_words", "not_image", "not_like", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.words is None and not (self.image or self.like or self.query_vector):
            raise ValueError(
                "the query asks for nothing; give WORDS, --image, --like or --query-vector, alone or together"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """The hits of a query."""

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
            return Group(title, Text("no hits"))
        return Group(title, rows_table(rows), *([Text(f"page: {self.page}")] if self.page else []))


def run(config: SearchConfig) -> SearchReport:
    """Search a table, and write a page of the hits if the config names one.

    Raises:
        FileNotFoundError: there is no such table, or no such picture.
        ValueError: the query does not fit the table.
    """
    from pipelines.search.retrieval.search import search

    table = config.ref(config.table, versions=True)
    storage = config.picture_storage(table)
    hits = search(table, _query(config), encoder=config.encoder, original=config.original, corpus_storage=storage)
    page = None
    if config.html is not None:
        from pipelines.pages.cards import Section, write_page

        picture = config.image[0].read_bytes() if config.image else None
        section = Section(title=_title(config), hits=hits, picture=picture)
        page = str(write_page(config.html, f"{table.name}: {_title(config)}", [section], storage))
    return SearchReport(table=str(table), query=_title(config), hits=hits, page=page)


def _query(config: SearchConfig) -> Query:
    from pipelines.search.retrieval.queries import Query, Term

    away = -config.not_weight
    terms = (
        *(Term(image=path.read_bytes()) for path in config.image),
        *(Term(like=row_id) for row_id in config.like),
        *(Term(words=words, weight=away) for words in config.not_words),
        *(Term(image=path.read_bytes(), weight=away) for path in config.not_image),
        *(Term(like=row_id, weight=away) for row_id in config.not_like),
    )
    return Query(
        words=config.words,
        vector=_read_vector(config.query_vector) if config.query_vector is not None else None,
        terms=terms,
        k=config.k,
        skip=config.skip,
        where=config.where,
        columns=tuple(name.strip() for name in config.columns.split(",")) if config.columns else None,
        vector_column=config.vector,
        full_text=config.full_text,
        hybrid=config.hybrid,
        fusion=config.fusion,
        fusion_weights=_read_weights(config.fusion_weights) if config.fusion_weights is not None else None,
        rerank=config.rerank,
        rerank_depth=config.rerank_depth,
        diversity=config.diversity,
        distinct=config.distinct,
    )


def _read_weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"fusion_weights {text!r}: give numbers separated by commas, as in 0.7,0.3") from None


def _read_vector(path: Path) -> tuple[float, ...]:
    import numpy as np

    try:
        vector = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"query_vector {path}: not a .npy file ({error}); write it with numpy.save") from None
    if vector.ndim != 1 or vector.dtype.kind != "f":
        raise ValueError(f"query_vector {path}: {vector.dtype} of shape {vector.shape}; give one row of floats")
    return tuple(float(value) for value in vector)


def _title(config: SearchConfig) -> str:
    """The query as a line of text."""
    towards = [
        *([config.words] if config.words else []),
        *(str(path) for path in config.image),
        *(f"like {row_id}" for row_id in config.like),
        *([str(config.query_vector)] if config.query_vector else []),
    ]
    away = [*config.not_words, *(str(path) for path in config.not_image), *(f"like {row}" for row in config.not_like)]
    return " + ".join(towards) + "".join(f" − {name}" for name in away)
