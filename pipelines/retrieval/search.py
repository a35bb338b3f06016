"""Search: by words, by a picture, by a row, or by full text; exact or through the index; filtered by SQL.

Only words and pictures need the encoder; a row is found by its own vectors and full text by its words, so those
never load a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.protocol import EncoderOptions, Modality
from pipelines.contract import CAPTION, IMAGE_URI, IMAGE_VECTOR, INTERNAL, ITEM_ID, ROW_ID, TEXT_VECTOR, THUMBNAIL
from pipelines.provenance import Provenance
from pipelines.retrieval.filters import check_filter, quote
from pipelines.retrieval.index import read_parameters
from pipelines.retrieval.publishing import answering
from pipelines.sink.tables import open_dataset
from pipelines.storage import TableRef

if TYPE_CHECKING:
    import lance

SCORE = "score"
_HIDDEN = (IMAGE_VECTOR, TEXT_VECTOR, THUMBNAIL, *INTERNAL)
_MOST_DISTINCT_ROUNDS = 6
# An index answers badly where a filter leaves few rows; up to this many are compared one by one.
_EXACT_UP_TO_MATCHES = 20_000


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is asked: exactly one of `words`, `image` and `like`.

    Attributes:
        words: a caption, or the words of a full-text search.
        image: a picture's bytes.
        like: a row id.
        k: how many rows.
        where: an SQL filter, applied before the search.
        columns: columns to return besides the id and the score; None for all but vectors and thumbnails.
        vector_column: the vectors to search; None chooses.
        full_text: search the captions' words (BM25) and not the vectors.
        distinct: at most one row an item.
        encoder: a spec that must be the table's own encoder; None takes what the table names.
        original: ask the table itself, where another was promoted to its place.
    """

    words: str | None = None
    image: bytes | None = None
    like: str | None = None
    k: int = 10
    where: str | None = None
    columns: tuple[str, ...] | None = None
    vector_column: str | None = None
    full_text: bool = False
    distinct: bool = False
    encoder: str | None = None
    original: bool = False


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What was found, best first.

    Attributes:
        rows: `row_id`, `score` (cosine, or BM25 for full text), and the columns asked for.
        column: the column that was searched.
        exact: whether every row was compared.
        pictures: `caption`, `image_uri` and, where there are any, `thumbnail` of the same rows, for a page.
    """

    rows: pa.Table
    column: str
    exact: bool
    pictures: pa.Table

    def to_list(self) -> list[dict[str, Any]]:
        """The rows as JSON-ready dictionaries; bytes are left out."""
        keep = [f.name for f in self.rows.schema if not _is_bytes(f.type)]
        return [{name: _plain(value) for name, value in row.items()} for row in self.rows.select(keep).to_pylist()]


def search(table: TableRef, query: Query) -> Hits:
    """The rows of a table that answer a query.

    Raises:
        FileNotFoundError: there is no such table.
        EncoderMismatchError: the query's encoder is not the table's.
        ValueError: the query asks for nothing, for two things, or for what the table has not got.
    """
    asked = [name for name in ("words", "image", "like") if getattr(query, name) is not None]
    if len(asked) != 1:
        raise ValueError(
            f"search: give one of words, an image and a row to be like; got {' and '.join(asked) or 'none'}"
        )
    if query.full_text and query.words is None:
        raise ValueError("search: full text needs words")
    table, dataset = (table, open_dataset(table)) if query.original else answering(table)
    if query.where is not None:
        check_filter(query.where, dataset)
    _check_columns(query, dataset)
    if query.full_text:
        return _full_text(dataset, query)
    provenance = Provenance.from_schema(dataset.schema, str(table))
    column = choose_column(provenance, asked[0], query.vector_column, str(table))
    if query.like is not None:
        vector, own = _vector_of(dataset, query.like, column, table)
        others = f"{ITEM_ID} != {quote(own)}" if query.distinct and own else f"{ROW_ID} != {quote(query.like)}"
        return _nearest(dataset, query, column, vector, also=others)
    return _nearest(dataset, query, column, _encode(query, provenance, column, table))


def choose_column(provenance: Provenance, asked: str, wanted: str | None, table: str) -> str:
    """The vector column that a query searches.

    Args:
        provenance: of the table.
        asked: `words`, `image` or `like`.
        wanted: a column that was named.
        table: for messages.

    Raises:
        ValueError: the table has no such vectors, or none that such a query can be compared with.
    """
    there = list(provenance.vector_columns())
    if wanted is not None and wanted not in there:
        raise ValueError(f"table {table}: has no vector column {wanted!r}; it has {', '.join(there)}")
    if asked == "like":
        return wanted or there[0]
    modality: Modality = "text" if asked == "words" else "image"
    tower = provenance.encoder.tower(modality)
    comparable = [c for c, t in provenance.vector_columns().items() if tower is not None and t.space == tower.space]
    if (wanted is not None and wanted not in comparable) or not comparable:
        raise ValueError(
            f"table {table}: {asked} cannot be compared with {wanted or ' or '.join(there)}: encoder "
            f"{provenance.encoder.name!r} has no {modality} tower in that space"
            + (f"; search {', '.join(comparable)}" if comparable else "")
        )
    return wanted or comparable[0]


def _encode(query: Query, provenance: Provenance, column: str, table: TableRef) -> NDArray[np.float32]:
    """The query's vector, made by the very encoder that made the table's."""
    from encoders.images import prepare
    from encoders.registry import describe, load

    spec = query.encoder or provenance.encoder.spec
    description = describe(spec)
    provenance.check_same_encoder(description.card, str(table))
    encoder = load(spec, EncoderOptions(text_policy="truncate"))
    if query.image is not None:
        assert description.image_transform is not None
        mode = provenance.settings.get("preprocessing", "fast")
        return encoder.encode_images([prepare(query.image, description.image_transform, mode)])[0]
    assert query.words is not None
    return encoder.encode_texts([query.words]).vectors[0]


def _vector_of(
    dataset: lance.LanceDataset, row_id: str, column: str, table: TableRef
) -> tuple[NDArray[np.float32], str | None]:
    rows = dataset.scanner(columns=[column, ITEM_ID], filter=f"{ROW_ID} = {quote(row_id)}", limit=1).to_table()
    if rows.num_rows == 0:
        raise ValueError(f"table {table}: no row with {ROW_ID} {row_id!r}")
    vector = rows[column][0].as_py()
    if vector is None:
        raise ValueError(f"table {table}: row {row_id!r} has no {column}")
    return np.array(vector, np.float32), rows[ITEM_ID][0].as_py()


def _nearest(
    dataset: lance.LanceDataset, query: Query, column: str, vector: NDArray[np.float32], also: str | None = None
) -> Hits:
    parameters = read_parameters(dataset, column)
    extra = parameters.nearest() if parameters else {"use_index": False}
    if query.where is not None and parameters and _few_match(dataset, query.where):
        parameters, extra = None, {"use_index": False}
    # No "IS NOT NULL": Lance leaves null vectors out, and the condition would read the whole column.
    conditions = [f"({c})" for c in (query.where, also) if c]

    def fetch(k: int) -> pa.Table:
        rows = dataset.scanner(
            nearest={"column": column, "q": vector, "k": k, "metric": "cosine", **extra},
            columns=[*_fetched(query, dataset), "_distance"],
            filter=" AND ".join(conditions) or None,
            prefilter=True,
            disable_scoring_autoprojection=True,
        ).to_table()
        scores = 1.0 - np.asarray(rows["_distance"].to_numpy(), np.float64)
        return rows.drop_columns(["_distance"]).add_column(1, SCORE, pa.array(scores))

    return _hits(_take(fetch, query), query, column, exact=parameters is None)


def _few_match(dataset: lance.LanceDataset, where: str) -> bool:
    return bool(dataset.count_rows(f"({where})") <= _EXACT_UP_TO_MATCHES)


def _full_text(dataset: lance.LanceDataset, query: Query) -> Hits:
    if not any(list(index.field_names) == [CAPTION] for index in dataset.describe_indices()):
        raise ValueError("search: the captions have no full-text index; run `isthmus index` first")

    def fetch(k: int) -> pa.Table:
        rows = dataset.scanner(
            full_text_query={"query": query.words, "columns": [CAPTION]},
            columns=[*_fetched(query, dataset), "_score"],
            filter=f"({query.where})" if query.where is not None else None,
            prefilter=query.where is not None,
            limit=k,
            disable_scoring_autoprojection=True,
        ).to_table()
        scores = rows["_score"]
        return rows.drop_columns(["_score"]).add_column(1, SCORE, scores)

    return _hits(_take(fetch, query), query, CAPTION, exact=True)


def _take(fetch: Any, query: Query) -> pa.Table:
    """k rows, best first, ties by id; of distinct items where asked, fetching more until there are enough."""
    k = query.k
    for _ in range(_MOST_DISTINCT_ROUNDS):
        rows = fetch(k).sort_by([(SCORE, "descending"), (ROW_ID, "ascending")])
        if not query.distinct:
            return rows.slice(0, query.k)
        items = rows[ITEM_ID].to_pylist()
        first = sorted({item: i for i, item in reversed(list(enumerate(items)))}.values())
        if len(first) >= query.k or rows.num_rows < k:
            break
        k *= 4
    return rows.take(pa.array(first[: query.k], pa.int64()))


def _fetched(query: Query, dataset: lance.LanceDataset) -> list[str]:
    chosen = query.columns if query.columns is not None else [n for n in dataset.schema.names if n not in _HIDDEN]
    thumbnail = [THUMBNAIL] if THUMBNAIL in dataset.schema.names else []
    wanted = dict.fromkeys([ROW_ID, ITEM_ID, CAPTION, IMAGE_URI, *chosen, *thumbnail])
    return [name for name in wanted if name != SCORE]  # the corpus' own column of that name gives way


def _hits(rows: pa.Table, query: Query, column: str, *, exact: bool) -> Hits:
    pictures = rows.select([name for name in (CAPTION, IMAGE_URI, THUMBNAIL) if name in rows.column_names])
    return Hits(rows=_shown(rows, query), column=column, exact=exact, pictures=pictures)


def _shown(rows: pa.Table, query: Query) -> pa.Table:
    """The columns asked for, with the id and the score."""
    if query.columns is None:
        return rows.drop_columns([THUMBNAIL]) if THUMBNAIL in rows.column_names else rows
    return rows.select([ROW_ID, SCORE, *(name for name in query.columns if name not in (ROW_ID, SCORE))])


def _check_columns(query: Query, dataset: lance.LanceDataset) -> None:
    names = dataset.schema.names
    for name in query.columns or ():
        if name not in names:
            raise ValueError(f"search: no column {name!r}; columns are {', '.join(names)}")
    if query.k < 1:
        raise ValueError(f"search: k {query.k}: at least 1")


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _plain(value: Any) -> Any:
    """A value as JSON has it, at any depth; bytes, and floats that are no numbers, become null."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, bytes):
        return None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
