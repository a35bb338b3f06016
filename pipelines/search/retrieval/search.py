"""Search by words, pictures, rows, vectors or full text, alone or composed; exact or by index; filtered by SQL.

Only words and pictures need the encoder. Rows are searched by their own vectors and full text by its words, so these
queries never load a model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.rows.contract import CAPTION, IMAGE_VECTOR, INTERNAL, ITEM_ID, ROW_ID, TEXT_VECTOR, THUMBNAIL, VECTORS
from pipelines.rows.hits import MATCH, RERANK, SCORE, Hits
from pipelines.search.retrieval.calibration import Calibration
from pipelines.search.retrieval.comparing import FewRows, few_matches
from pipelines.search.retrieval.composing import QueryEncoder, choose_columns, query_vector, row_of
from pipelines.search.retrieval.fusing import check_weights, diversify, fuse_ranks, fuse_scores
from pipelines.search.retrieval.known import Known
from pipelines.search.retrieval.queries import Query, Term
from pipelines.sources.row_pictures import ReadPictures, reader
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.corpora import read_corpora
from pipelines.tables.filters import check_filter, quote
from pipelines.tables.opening import open_dataset
from pipelines.tables.promotion import answering
from pipelines.tables.provenance import Provenance

if TYPE_CHECKING:
    import lance

    from pipelines.search.retrieval.reranker import Reranker

# Kind of query → the column that holds vectors of this kind.
_SOURCES = {"words": TEXT_VECTOR, "image": IMAGE_VECTOR}
_HIDDEN = (*VECTORS, THUMBNAIL, *INTERNAL)
_MOST_ROUNDS = 6
_ORDER = [(SCORE, "descending"), (ROW_ID, "ascending")]
# How deep rankings are read before they are fused or diversified; the same for every page of an answer.
_FUSED_DEPTH, _VARIED_DEPTH = 200, 400
# Up to this many rows that meet a filter are compared one by one.
_FEW = 20_000


class OpenTable:
    """A table opened for queries, at its current version. Its encoder loads at the first query that needs it.

    Several threads may query it at once.

    Attributes:
        table: the table that answers: the one that was opened, or one that was promoted to its place.
        dataset: its Lance dataset.
        provenance: which encoder made its vectors, and how.
        known: facts of this version, read once.
        encoder: encodes words and pictures.
    """

    def __init__(
        self,
        table: TableRef,
        dataset: lance.LanceDataset,
        encoder: QueryEncoder | None = None,
        read: ReadPictures | None = None,
    ) -> None:
        """Wrap an opened table.

        Args:
            table: the table.
            dataset: its dataset.
            encoder: encodes words and pictures; None uses the table's own encoder.
            read: reads the rows' pictures, for cross-encoders; None reads the corpus, with credentials from the
                environment.
        """
        self.table = table
        self._read = read or reader(Storage.from_options({}).with_moves(read_corpora(dataset).moves()))
        self._rerankers: dict[str, Reranker] = {}
        self._lock = threading.Lock()
        self.dataset = dataset
        self.known = Known(dataset)
        self.provenance = Provenance.from_schema(dataset.schema, str(table))
        self.encoder = encoder or QueryEncoder(self.provenance.encoder.spec)

    @classmethod
    def open(
        cls,
        table: TableRef,
        *,
        encoder: str | None = None,
        original: bool = False,
        corpus_storage: Storage | None = None,
    ) -> OpenTable:
        """Open a table.

        Args:
            table: the table.
            encoder: a spec, which must name the table's own encoder; None uses the spec in the table's provenance.
            original: open the table itself, even if another was promoted to its place.
            corpus_storage: how to reach the rows' pictures, for cross-encoders.

        Raises:
            FileNotFoundError: there is no such table.
            ValueError: it was not made by isthmus.
        """
        table, dataset = (table, open_dataset(table)) if original else answering(table)
        read = reader(corpus_storage) if corpus_storage is not None else None
        return cls(table, dataset, QueryEncoder(encoder) if encoder is not None else None, read)

    def search(self, query: Query | None = None, /, **asked: Any) -> Hits:
        """The rows that answer a query, given as a `Query` or as its fields: `table.search(words="a dog", k=5)`.

        Raises:
            EncoderMismatchError: the encoder is not the table's.
            ValueError: the query is empty, contradicts itself, or asks for something that the table lacks.
        """
        query = replace(query, **asked) if query is not None else Query(**asked)
        terms = query.all_terms()
        if query.where is not None:
            check_filter(query.where, self.dataset)
        _check_columns(query, self.known.names)
        rankings, likeness = _rankings(self, query, terms)
        check_weights(query.fusion_weights, [ranking.column for ranking in rankings])
        if query.rerank is None:
            return _hits(self.dataset, _take(rankings, likeness, query), query, rankings)
        first = _take(rankings, likeness, replace(query, skip=0, k=max(query.rerank_depth, query.skip + query.k)))
        ordered = self.reranker(query.rerank).order(first, terms, query.rerank_depth)
        return _hits(self.dataset, ordered.slice(query.skip, query.k), query, rankings)

    def reranker(self, spec: str) -> Reranker:
        """A cross-encoder for this table's rows, loaded once.

        Raises:
            ValueError: there is no such model, or it is not a cross-encoder.
        """
        with self._lock:
            if spec not in self._rerankers:
                from pipelines.search.retrieval.reranker import Reranker

                self._rerankers[spec] = Reranker(spec, self._read)
            return self._rerankers[spec]


def search(
    table: TableRef,
    query: Query,
    *,
    encoder: str | None = None,
    original: bool = False,
    corpus_storage: Storage | None = None,
) -> Hits:
    """The rows of a table that answer one query. For the arguments, and for several queries, see `OpenTable`.

    Raises:
        FileNotFoundError: there is no such table.
        EncoderMismatchError: the encoder is not the table's.
        ValueError: the query is empty, contradicts itself, or asks for something that the table lacks.
    """
    opened = OpenTable.open(table, encoder=encoder, original=original, corpus_storage=corpus_storage)
    return opened.search(query)


@dataclass(frozen=True, kw_only=True)
class _Ranking:
    """One way to rank the rows.

    Attributes:
        column: the column that is searched.
        exact: whether every row is compared.
        fetch: returns the best rows, as many as asked for, with their scores.
        vector: (dim,) the vector to search by; None for words alone.
        calibration: turns scores into probabilities of a match; None if the table has none.
    """

    column: str
    exact: bool
    fetch: Callable[[int], pa.Table]
    vector: NDArray[np.float32] | None = None
    calibration: Calibration | None = None


def _rankings(opened: OpenTable, query: Query, terms: tuple[Term, ...]) -> tuple[list[_Ranking], str | None]:
    """The rankings that a query asks for, and the vector column that measures likeness (None without diversity)."""
    dataset, provenance, name = opened.dataset, opened.provenance, str(opened.table)
    if query.full_text:
        alike = choose_columns(provenance, (), query.asked_columns(), name)[0] if query.diversity else None
        return [_by_words(opened.known, query, alike)], alike
    columns = choose_columns(provenance, [term.kind for term in terms], query.asked_columns(), name)
    gallery, others = opened.known.gallery, _others(dataset, query, terms, name)
    likeness = columns[0] if query.diversity else None
    encoded = opened.encoder.encode(terms, provenance, name)
    rankings = [
        _by_vector(
            opened.known, query, column, query_vector(dataset, column, terms, encoded, name, gallery), others, likeness
        )
        for column in columns
    ]
    if len(rankings) == len(terms) == 1 and not query.hybrid and terms[0].kind in _SOURCES:
        calibration = opened.known.calibration(columns[0], _SOURCES[terms[0].kind])
        return [replace(rankings[0], calibration=calibration)], likeness
    return [*rankings, *([_by_words(opened.known, query, likeness, others)] if query.hybrid else [])], likeness


@dataclass(frozen=True, kw_only=True)
class _Others:
    """The rows that a query names and that are therefore no answers: whole items, or single rows."""

    items: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    def conditions(self) -> list[str]:
        """SQL conditions that exclude them."""
        pairs = [(ITEM_ID, self.items), (ROW_ID, self.rows)]
        return [f"{column} != {quote(name)}" for column, names in pairs for name in names]


def _others(dataset: lance.LanceDataset, query: Query, terms: tuple[Term, ...], table: str) -> _Others:
    named = [term.like for term in terms if term.like is not None]
    if not query.distinct:
        return _Others(rows=tuple(dict.fromkeys(named)))
    owners = {row_id: row_of(dataset, row_id, [], table)[ITEM_ID] for row_id in named}
    return _Others(
        items=tuple(item for item in dict.fromkeys(owners.values()) if item),
        rows=tuple(row_id for row_id, item in owners.items() if not item),
    )


def _by_vector(
    known: Known, query: Query, column: str, vector: NDArray[np.float32], others: _Others, likeness: str | None
) -> _Ranking:
    dataset = known.dataset
    # A filter makes Lance read every row's id. If only single rows are excluded, they are fetched and dropped instead.
    dropped = others.rows if query.where is None and not others.items else ()
    # No "IS NOT NULL": Lance leaves null vectors out, and the condition would read the whole column.
    conditions = "" if dropped else " AND ".join(f"({c})" for c in (query.where, *others.conditions()) if c)
    columns = _fetched(query, known, likeness)
    if query.where is not None and (matches := few_matches(dataset, conditions, _FEW)) is not None:
        few = FewRows(dataset, column, vector, matches)
        return _Ranking(column=column, exact=True, fetch=lambda k: few.best(k, columns, SCORE), vector=vector)
    parameters = known.parameters(column)

    def fetch(wanted: int) -> pa.Table:
        k = wanted + len(dropped)
        extra = parameters.nearest(k, filtered=bool(conditions)) if parameters else {"use_index": False}
        rows = dataset.scanner(
            nearest={"column": column, "q": vector, "k": k, "metric": "cosine", **extra},
            columns=[*columns, "_distance"],
            filter=conditions or None,
            prefilter=True,
            disable_scoring_autoprojection=True,
        ).to_table()
        scores = 1.0 - np.asarray(rows["_distance"].to_numpy(), np.float64)
        rows = rows.drop_columns(["_distance"]).add_column(1, SCORE, pa.array(scores))
        return _without(rows, dropped).slice(0, wanted) if dropped else rows

    return _Ranking(column=column, exact=parameters is None, fetch=fetch, vector=vector)


def _without(rows: pa.Table, row_ids: Sequence[str]) -> pa.Table:
    return rows.filter(pc.invert(pc.is_in(rows[ROW_ID], value_set=pa.array(row_ids, rows.schema.field(ROW_ID).type))))


def _by_words(known: Known, query: Query, likeness: str | None, others: _Others | None = None) -> _Ranking:
    if not known.has_text_index:
        raise ValueError("search: the captions have no full-text index; run `isthmus index` first")
    conditions = [f"({c})" for c in (query.where, *(others.conditions() if others else ())) if c]
    columns = _fetched(query, known, likeness)

    def fetch(k: int) -> pa.Table:
        rows = known.dataset.scanner(
            full_text_query={"query": query.asked_words(), "columns": [CAPTION]},
            columns=[*columns, "_score"],
            filter=" AND ".join(conditions) or None,
            prefilter=bool(conditions),
            limit=k,
            disable_scoring_autoprojection=True,
        ).to_table()
        scores = rows["_score"].cast(pa.float64())
        return rows.drop_columns(["_score"]).add_column(1, SCORE, scores)

    return _Ranking(column=CAPTION, exact=True, fetch=fetch)


def _take(rankings: list[_Ranking], likeness: str | None, query: Query) -> pa.Table:
    """The rows of the requested page. More rows are fetched until there are enough of distinct items."""
    need = query.skip + query.k
    depth = max(need, _FUSED_DEPTH if len(rankings) > 1 else 0, _VARIED_DEPTH if likeness else 0)
    for _ in range(_MOST_ROUNDS):
        found = [_in_order(ranking.fetch(depth)) for ranking in rankings]
        rows = _fused(found, query) if len(found) > 1 else found[0]
        if query.distinct:
            rows = _first_of_items(rows)
        if rows.num_rows >= need or all(table.num_rows < depth for table in found):
            break
        depth *= 4
    return (_varied(rows, likeness, query.diversity, need) if likeness else rows).slice(query.skip, query.k)


def _in_order(rows: pa.Table) -> pa.Table:
    """Best first, ties by id. Lance's answers usually are in order, and sorting ten rows takes a tenth of a search."""
    scores = rows[SCORE].to_numpy()
    return rows if bool((scores[1:] < scores[:-1]).all()) else rows.sort_by(_ORDER)


def _fused(found: list[pa.Table], query: Query) -> pa.Table:
    if query.fusion == "rank":
        scores = fuse_ranks([table[ROW_ID].to_pylist() for table in found], query.fusion_weights)
    else:
        pairs = [zip(table[ROW_ID].to_pylist(), table[SCORE].to_pylist(), strict=True) for table in found]
        scores = fuse_scores([dict(ranking) for ranking in pairs], query.fusion_weights)
    seen: set[str] = set()
    pieces = []
    for table in found:
        ids = table[ROW_ID].to_pylist()
        pieces.append(table.take(pa.array([i for i, row_id in enumerate(ids) if row_id not in seen], pa.int64())))
        seen.update(ids)
    rows = pa.concat_tables(pieces)
    fused = pa.array([scores[row_id] for row_id in rows[ROW_ID].to_pylist()], pa.float64())
    return rows.set_column(rows.column_names.index(SCORE), SCORE, fused).sort_by(_ORDER)


def _first_of_items(rows: pa.Table) -> pa.Table:
    items = rows[ITEM_ID].to_pylist()
    first = {item: i for i, item in reversed(list(enumerate(items)))}
    return rows.take(pa.array(sorted(first.values()), pa.int64()))


def _varied(rows: pa.Table, likeness: str, diversity: float, count: int) -> pa.Table:
    length = rows.schema.field(likeness).type.list_size
    vectors = np.array([v or [0.0] * length for v in rows[likeness].to_pylist()], np.float32).reshape(-1, length)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(norms > 0, norms, 1.0)
    return rows.take(pa.array(diversify(rows[SCORE].to_numpy(), vectors, diversity, count), pa.int64()))


def _fetched(query: Query, known: Known, likeness: str | None) -> list[str]:
    """The columns to read of each candidate. Each one costs time; pictures are read only when they are looked at."""
    chosen = query.columns if query.columns is not None else [n for n in known.names if n not in _HIDDEN]
    pictures = known.picture_columns if query.rerank is not None else []
    own = [ITEM_ID] if query.distinct else []
    wanted = dict.fromkeys([ROW_ID, *own, *chosen, *pictures, *([likeness] if likeness else [])])
    return [name for name in wanted if name != SCORE]  # a corpus column of that name is replaced by the score


def _hits(dataset: lance.LanceDataset, rows: pa.Table, query: Query, rankings: list[_Ranking]) -> Hits:
    calibration, vector = rankings[0].calibration, rankings[0].vector
    if calibration is not None and vector is not None:
        chance = calibration.probability(rows[SCORE].to_numpy(), vector)
        rows = rows.drop_columns([MATCH]) if MATCH in rows.column_names else rows
        rows = rows.add_column(rows.column_names.index(SCORE) + 1, MATCH, pa.array(chance))
    return Hits(
        rows=_shown(rows, query),
        column=" + ".join(ranking.column for ranking in rankings),
        exact=all(ranking.exact for ranking in rankings),
        read_pictures=partial(_pictures, dataset, rows[ROW_ID].to_pylist()),
    )


def _pictures(dataset: lance.LanceDataset, row_ids: list[str]) -> pa.Table:
    """The columns of rows that a page shows, in the order of `row_ids`."""
    columns = Known(dataset).picture_columns
    if not row_ids:
        return dataset.take([], columns=columns)
    condition = f"{ROW_ID} IN ({', '.join(map(quote, row_ids))})"
    found = dataset.scanner(columns=[ROW_ID, *columns], filter=condition).to_table()
    places = {row_id: place for place, row_id in enumerate(found[ROW_ID].to_pylist())}
    return found.take([places[row_id] for row_id in row_ids]).select(columns)


def _shown(rows: pa.Table, query: Query) -> pa.Table:
    """The requested columns, with the id and the score."""
    if query.columns is None:
        return rows.select([name for name in rows.column_names if name not in _HIDDEN])
    first = [name for name in (ROW_ID, SCORE, MATCH, RERANK) if name in rows.column_names]
    return rows.select([*first, *(name for name in query.columns if name not in first)])


def _check_columns(query: Query, names: list[str]) -> None:
    for name in query.columns or ():
        if name not in names:
            raise ValueError(f"search: no column {name!r}; columns are {', '.join(names)}")
