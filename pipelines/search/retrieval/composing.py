"""The vector of a query: a single term's own vector, or a weighted sum of several terms on a common scale."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from encoders.description import Description
from encoders.protocol import Encoder, EncoderOptions, Modality
from pipelines.rows.contract import ITEM_ID, ROW_ID
from pipelines.search.indexing.recall import sample_vectors
from pipelines.search.retrieval.queries import Kind, Term
from pipelines.tables.filters import quote
from pipelines.tables.provenance import Provenance

if TYPE_CHECKING:
    import lance

# Enough for a standard deviation that is accurate to a few per cent.
_SAMPLED_ROWS = 512
# A vector column → a sample of its vectors (n, dim).
Gallery = Callable[[str], NDArray[np.float64]]
_MODALITY: dict[Kind, Modality] = {"words": "text", "image": "image"}


def choose_columns(provenance: Provenance, kinds: Sequence[Kind], wanted: Sequence[str], table: str) -> list[str]:
    """The vector columns that a query searches: the named ones, else the first that fits all its terms.

    Args:
        provenance: provenance of the table.
        kinds: kinds of the query's terms.
        wanted: columns that the query names.
        table: the table's name, for messages.

    Raises:
        ValueError: the table has no such vectors, or none that such a query can be compared with.
    """
    there = list(provenance.spaces())
    for name in wanted:
        if name not in there:
            raise ValueError(f"table {table}: has no vector column {name!r}; it has {', '.join(there)}")
    for kind in dict.fromkeys(kinds):
        fitting = [column for column in there if _fits(provenance, kind, column)]
        lacking = [column for column in wanted if column not in fitting]
        if lacking or not fitting:
            raise ValueError(
                f"table {table}: {kind} cannot be compared with {' or '.join(lacking or there)}: encoder "
                f"{provenance.encoder.name!r} has no {_MODALITY[kind]} tower in that space"
                + (f"; search {', '.join(fitting)}" if fitting else "")
            )
    if wanted:
        return list(wanted)
    for column in there:
        if all(_fits(provenance, kind, column) for kind in kinds):
            return [column]
    raise ValueError(f"table {table}: no column fits {' and '.join(kinds)} together; search for each separately")


def _fits(provenance: Provenance, kind: Kind, column: str) -> bool:
    if kind not in _MODALITY:
        return True
    tower = provenance.encoder.tower(_MODALITY[kind])
    return tower is not None and tower.space == provenance.spaces()[column]


class QueryEncoder:
    """The encoder of a table, for its queries: checked and loaded at the first words or picture, then kept."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None
        self._description: Description | None = None

    def encode(self, terms: Sequence[Term], provenance: Provenance, table: str) -> list[NDArray | None]:
        """Vectors of words and pictures, made in the same way as the table's; None for rows and raw vectors.

        Raises:
            EncoderMismatchError: this is not the table's encoder.
            ImageError: a picture cannot be decoded.
        """
        if not any(term.kind in _MODALITY for term in terms):
            return [None] * len(terms)
        with self._lock:
            from encoders.registry import describe, load

            if self._description is None:
                self._description = describe(self.spec)
            provenance.check_same_encoder(self._description.card, table)
            if self._encoder is None:
                self._encoder = load(self.spec, EncoderOptions(text_policy="truncate"))
            return [self._vector(term, self._encoder, self._description, provenance) for term in terms]

    def _vector(self, term: Term, encoder: Encoder, description: Description, provenance: Provenance) -> NDArray | None:
        if term.image is not None:
            from encoders.images import prepare

            assert description.image_transform is not None
            mode = provenance.settings.get("preprocessing", "fast")
            return np.asarray(encoder.encode_images([prepare(term.image, description.image_transform, mode)])[0])
        return np.asarray(encoder.encode_texts([term.words]).vectors[0]) if term.words is not None else None


def query_vector(
    dataset: lance.LanceDataset,
    column: str,
    terms: Sequence[Term],
    encoded: Sequence[NDArray | None],
    table: str,
    gallery: Gallery,
) -> NDArray[np.float32]:
    """The vector to search a column with.

    Args:
        dataset: the table's dataset.
        column: a vector column.
        terms: the query's terms.
        encoded: the terms' vectors, None for rows and raw vectors.
        table: the table's name, for messages.
        gallery: returns a sample of a column's vectors; called only if there are several terms.

    Returns:
        (dim,) float32 of length 1, or a single term's own vector.

    Raises:
        ValueError: a row is missing, a vector has the wrong length, or the terms cancel each other out.
    """
    vectors = [
        _own_vector(dataset, column, term, table) if found is None else found
        for term, found in zip(terms, encoded, strict=True)
    ]
    if len(vectors) == 1:
        return np.asarray(vectors[0], np.float32)
    weights = np.array([term.weight for term in terms])
    try:
        return compose(np.array(vectors, np.float64), weights, gallery(column))
    except ValueError as error:
        raise ValueError(f"table {table}: {error}") from None


def sample_gallery(dataset: lance.LanceDataset, column: str) -> NDArray[np.float64]:
    """A sample of a column's vectors (n, dim), always the same; enough to estimate the spread of cosines to it."""
    return np.array([vector for _, vector in sample_vectors(dataset, column, _SAMPLED_ROWS)], np.float64)


def compose(
    vectors: NDArray[np.float64], weights: NDArray[np.float64], gallery: NDArray[np.float64]
) -> NDArray[np.float32]:
    """One vector whose cosines rank a gallery by the weighted sum of each term's *standardised* cosines.

    Over a gallery, a picture's cosines to other pictures spread several times wider than those of words, so in a plain
    sum the words would hardly count. Each term is therefore divided by the standard deviation of its cosines over the
    gallery, so that equal weights have equal effect. The result is still one vector, so a single search through the
    index answers it. Negative weights lead away from a term, as in Rocchio's formula (Rocchio: Relevance Feedback in
    Information Retrieval, 1971).

    Args:
        vectors: (terms, dim) the terms' vectors.
        weights: (terms,) their weights.
        gallery: (n, dim) a sample of the searched vectors; may be empty.

    Returns:
        (dim,) float32 of length 1.

    Raises:
        ValueError: the sum is 0.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    spread = np.ones(len(unit))
    if len(gallery) > 1:
        norms = np.linalg.norm(gallery, axis=1, keepdims=True)
        spread = (unit @ (gallery / np.where(norms > 0, norms, 1.0)).T).std(axis=1)
        spread = np.where(spread > spread.max() * 1e-3, spread, 1.0) if spread.max() > 0 else np.ones(len(unit))
    total = (weights / spread) @ unit
    norm = np.linalg.norm(total)
    if norm <= 1e-6 * np.abs(weights / spread).sum():
        raise ValueError("the query's terms cancel each other out; change a weight")
    return np.asarray(total / norm, np.float32)


def _own_vector(dataset: lance.LanceDataset, column: str, term: Term, table: str) -> NDArray:
    if term.vector is not None:
        length = dataset.schema.field(column).type.list_size
        if len(term.vector) != length:
            raise ValueError(f"table {table}: vector has {len(term.vector)} numbers; {column} has {length}")
        return np.array(term.vector, np.float32)
    assert term.like is not None
    vector = row_of(dataset, term.like, [column], table)[column]
    if vector is None:
        raise ValueError(f"table {table}: row {term.like!r} has no {column}")
    return np.array(vector, np.float32)


def row_of(dataset: lance.LanceDataset, row_id: str, columns: list[str], table: str) -> dict:
    """Columns of one row, and its item id.

    Raises:
        ValueError: there is no such row.
    """
    rows = dataset.scanner(columns=[*columns, ITEM_ID], filter=f"{ROW_ID} = {quote(row_id)}", limit=1).to_table()
    if rows.num_rows == 0:
        raise ValueError(f"table {table}: no row with {ROW_ID} {row_id!r}")
    return dict(rows.to_pylist()[0])
