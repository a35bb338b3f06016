"""The app: an HTTP API over some tables, and the page that uses it.

The server names the tables, never a request. Pictures come from a table's own rows, and their files only from the
table's own corpora. Filters are columns and values; a `where` text is checked to be one filter expression.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import FileResponse

from pipelines.rows.contract import CAPTION, ITEM_ID, ROW_ID
from pipelines.rows.hits import MATCH, SCORE
from pipelines.search.retrieval.composing import QueryEncoder
from pipelines.search.retrieval.queries import Query, Term
from pipelines.search.retrieval.search import OpenTable
from pipelines.search.serving.facets import Chosen, condition, facets
from pipelines.search.serving.guards import BodyLimit, SafeHeaders, TokenGate
from pipelines.search.serving.row_images import BroughtPictures, PictureStore, corpus_root, row_picture
from pipelines.search.serving.steps import Steps
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.filters import check_filter
from pipelines.tables.jobs import remembered_jobs

_MOST_BYTES = 12 * 1024 * 1024
_MOST_PIXELS = 50_000_000
_FRESH_S = 5.0
_OWN_PLACE = (ROW_ID, SCORE, MATCH, CAPTION, ITEM_ID)
Words = Annotated[str, Field(min_length=1, max_length=2_000)]
Id = Annotated[str, Field(min_length=1, max_length=1_000)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of an app.

    Attributes:
        token: the token that requests must show; None admits everybody who reaches the server.
        hosts: host names of the server. Requests for other names are refused, so that no foreign page can pose as it.
        time_limit_s: a request that takes longer than this many seconds gets an error.
        picture_roots: folders, besides the tables' own corpora, whose pictures may be shown.
        corpus_storage: how to reach the corpora's pictures.
    """

    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    time_limit_s: float = 30.0
    picture_roots: tuple[str, ...] = ()
    corpus_storage: Storage = field(default_factory=Storage.from_options)


class Filter(BaseModel):
    """One filter: a column compared with a value."""

    model_config = ConfigDict(extra="forbid")
    column: Id
    operation: Literal["is", "at_least", "at_most", "contains"] = "is"
    value: Annotated[str, Field(max_length=1_000)] | float | bool


class SearchRequest(BaseModel):
    """A query of words, pictures (by the ids of brought pictures) and rows, each towards or away from it."""

    model_config = ConfigDict(extra="forbid")
    table: Id
    words: Words | None = None
    images: list[Digest] = Field(default=[], max_length=8)
    like: list[Id] = Field(default=[], max_length=16)
    not_words: list[Words] = Field(default=[], max_length=8)
    not_images: list[Digest] = Field(default=[], max_length=8)
    not_like: list[Id] = Field(default=[], max_length=16)
    not_weight: float = Field(default=0.5, gt=0, le=10)
    k: int = Field(default=24, ge=1, le=200)
    skip: int = Field(default=0, ge=0, le=5_000)
    filters: list[Filter] = Field(default=[], max_length=32)
    where: Annotated[str, Field(max_length=2_000)] | None = None
    vector: Id | None = None
    full_text: bool = False
    hybrid: bool = False
    diversity: float = Field(default=0.0, ge=0, le=1)
    distinct: bool = False


class _Served:
    """A table that is reopened every few seconds, so that rows committed by jobs are found."""

    def __init__(self, ref: TableRef, encoders: dict[str, QueryEncoder], roots: Sequence[str]) -> None:
        self._ref, self._encoders = ref, encoders
        self._lock = threading.Lock()
        self._opened = self._open()
        self._at = time.monotonic()
        self.roots = (*roots, *(corpus_root(str(job["corpus"])) for job in remembered_jobs(self._opened.table)))

    def _open(self) -> OpenTable:
        opened = OpenTable.open(self._ref)
        spec = opened.provenance.encoder.spec
        opened.encoder = self._encoders.setdefault(spec, opened.encoder)
        return opened

    def opened(self) -> OpenTable:
        """The table, opened at most 5 seconds ago."""
        with self._lock:
            if time.monotonic() - self._at > _FRESH_S:
                self._opened, self._at = self._open(), time.monotonic()
            return self._opened


def create_app(
    tables: Mapping[str, TableRef], settings: ServeSettings, pictures: PictureStore | None = None
) -> FastAPI:
    """The app over these tables. Its `state.steps` runs the work of requests.

    Args:
        tables: name in requests → table.
        settings: how the app runs.
        pictures: stores the pictures that users bring; None stores them in this process.

    Raises:
        FileNotFoundError: one of the tables does not exist.
        ValueError: one was not made by isthmus.
    """
    encoders: dict[str, QueryEncoder] = {}
    served = {name: _Served(ref, encoders, settings.picture_roots) for name, ref in tables.items()}
    brought = BroughtPictures(pictures)
    gate = [Middleware(TokenGate, token=settings.token)] if settings.token else []
    app = FastAPIOffline(
        title="isthmus",
        description="Search tables of pictures and captions by words, pictures and rows.",
        middleware=[
            Middleware(SafeHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts)),
            *gate,
            Middleware(BodyLimit, most=_MOST_BYTES),
        ],
    )
    app.state.steps = steps = Steps(settings.time_limit_s)

    def find(name: str) -> _Served:
        if name not in served:
            raise HTTPException(404, f"no table {name[:80]!r}; there are {', '.join(served)}")
        return served[name]

    @app.get("/api/tables")
    async def list_tables() -> list[dict[str, Any]]:
        """The tables, and the filters that each offers."""
        return await steps.run(lambda: [_about(name, one.opened()) for name, one in served.items()])

    @app.post("/api/search")
    async def search(request: SearchRequest) -> dict[str, Any]:
        """The rows that answer a query, best first."""
        one = find(request.table)
        return await steps.run(lambda: _search(one.opened(), request, brought))

    @app.post("/api/pictures", status_code=201)
    async def bring(request: Request) -> dict[str, str]:
        """Bring a picture (its bytes as the body) to search by. Returns the id that a search takes."""
        data = await request.body()
        return {"id": await steps.run(lambda: brought.add(data, _MOST_PIXELS))}

    @app.get("/api/pictures/{digest}", response_class=Response)
    async def brought_picture(digest: Digest) -> Response:
        """A picture that a user brought."""
        return _jpeg(await steps.run(lambda: brought.get(digest)))

    @app.get("/api/tables/{table}/picture", response_class=Response)
    async def picture(table: str, row: Id) -> Response:
        """The picture of a row."""
        one = find(table)
        return _jpeg(
            await steps.run(lambda: row_picture(one.opened().dataset, row, one.roots, settings.corpus_storage))
        )

    static = files("pipelines.search.serving") / "static"

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(str(static / "index.html"))

    app.mount("/static", StaticFiles(directory=str(static)), name="static")
    return app


def _jpeg(data: bytes) -> Response:
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _about(name: str, opened: OpenTable) -> dict[str, Any]:
    return {
        "name": name,
        "table": opened.table.label,
        "version": opened.dataset.version,
        "rows": opened.dataset.count_rows(),
        "encoder": opened.provenance.encoder.name,
        "vectors": list(opened.provenance.spaces()),
        "full_text": any(list(index.field_names) == [CAPTION] for index in opened.dataset.describe_indices()),
        "facets": [asdict(facet) for facet in facets(opened.dataset)],
    }


def _search(opened: OpenTable, request: SearchRequest, brought: BroughtPictures) -> dict[str, Any]:
    started = time.perf_counter()
    hits = opened.search(_query(opened, request, brought))
    rows = [
        {
            "row_id": row[ROW_ID],
            "score": row[SCORE],
            "match": row.get(MATCH),
            "caption": row.get(CAPTION),
            "item_id": row.get(ITEM_ID),
            "fields": {k: v for k, v in row.items() if k not in _OWN_PLACE and v is not None},
        }
        for row in hits.to_list()
    ]
    return {
        "table": request.table,
        "version": opened.dataset.version,
        "searched": hits.column,
        "exact": hits.exact,
        "ms": round((time.perf_counter() - started) * 1e3, 1),
        "hits": rows,
    }


def _query(opened: OpenTable, request: SearchRequest, brought: BroughtPictures) -> Query:
    def picture(digest: str) -> bytes:
        try:
            return brought.get(digest)
        except KeyError:
            raise ValueError("a picture of this link is no longer stored; bring it again") from None

    away = -request.not_weight
    chosen = [Chosen(column=f.column, operation=f.operation, value=f.value) for f in request.filters]
    conditions = [condition(opened.dataset, chosen)]
    if request.where is not None:
        conditions.append(check_filter(request.where, opened.dataset))
    return Query(
        words=request.words,
        terms=(
            *(Term(image=picture(digest)) for digest in request.images),
            *(Term(like=row_id) for row_id in request.like),
            *(Term(words=words, weight=away) for words in request.not_words),
            *(Term(image=picture(digest), weight=away) for digest in request.not_images),
            *(Term(like=row_id, weight=away) for row_id in request.not_like),
        ),
        k=request.k,
        skip=request.skip,
        where=" AND ".join(f"({c})" for c in conditions if c) or None,
        vector_column=request.vector,
        full_text=request.full_text,
        hybrid=request.hybrid,
        diversity=request.diversity,
        distinct=request.distinct,
    )
