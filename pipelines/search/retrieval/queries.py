"""Queries: words, pictures, rows and vectors, alone or composed, with positive or negative weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Fusion = Literal["rank", "score"]
Kind = Literal["words", "image", "like", "vector"]
KINDS: tuple[Kind, ...] = ("words", "image", "like", "vector")


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of a query: exactly one of `words`, `image`, `like` and `vector`.

    Attributes:
        words: a caption.
        image: a picture's bytes.
        like: the id of a row.
        vector: a vector with as many numbers as the searched column's vectors.
        weight: the term's weight; a negative weight leads away from the term.
    """

    words: str | None = None
    image: bytes | None = None
    like: str | None = None
    vector: tuple[float, ...] | None = None
    weight: float = 1.0

    @property
    def kind(self) -> Kind:
        """Which of the four the term is.

        Raises:
            ValueError: it is none of them, or several.
        """
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"search: a term is one of {', '.join(KINDS)}; got {' and '.join(given) or 'none'}")
        return given[0]


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query. `words`, `image`, `like` and `vector` together make one composed query, as do additional `terms`.

    Attributes:
        words: a caption, or the words of a full-text search.
        image: a picture's bytes.
        like: the id of a row.
        vector: a vector with as many numbers as the searched column's vectors.
        terms: further terms, with weights.
        k: number of rows to return.
        skip: number of best rows to leave out first, for the next page.
        where: an SQL filter, applied before the search.
        columns: columns to return besides the id and the score; None returns all but vectors and thumbnails.
        vector_column: the vector column to search, or `a,b` to fuse the rankings of two; None chooses one.
        full_text: search the captions' words (BM25) instead of vectors.
        hybrid: fuse the ranking by vectors with the ranking by the captions' words.
        fusion: fuse rankings by `rank` (reciprocal ranks) or by `score` (scores stretched to 0 to 1 in each ranking).
        fusion_weights: weights of the rankings, in the order of the columns, the captions' words last; None weights all
            equally.
        diversity: from 0 (the best rows) to 1 (rows unlike those before them): maximal marginal relevance.
        distinct: return at most one row per item.
        rerank: a cross-encoder (a model directory or a hub id) that reorders the best rows.
        rerank_depth: number of best rows to reorder.
    """

    words: str | None = None
    image: bytes | None = None
    like: str | None = None
    vector: tuple[float, ...] | None = None
    terms: tuple[Term, ...] = ()
    k: int = 10
    skip: int = 0
    where: str | None = None
    columns: tuple[str, ...] | None = None
    vector_column: str | None = None
    full_text: bool = False
    hybrid: bool = False
    fusion: Fusion = "rank"
    fusion_weights: tuple[float, ...] | None = None
    diversity: float = 0.0
    distinct: bool = False
    rerank: str | None = None
    rerank_depth: int = 100

    def all_terms(self) -> tuple[Term, ...]:
        """All terms of the query.

        Raises:
            ValueError: there is no term, no term with a positive weight, or a value out of range.
        """
        own = [Term(**{kind: getattr(self, kind)}) for kind in KINDS if getattr(self, kind) is not None]
        terms = (*own, *self.terms)
        _check_terms(terms)
        if self.k < 1:
            raise ValueError(f"search: k {self.k}: give at least 1")
        if self.skip < 0:
            raise ValueError(f"search: skip {self.skip}: give at least 0")
        if self.fusion_weights is not None and not all(0 < w < math.inf for w in self.fusion_weights):
            raise ValueError(f"search: fusion_weights {list(self.fusion_weights)}: give numbers above 0")
        if not 0 <= self.diversity <= 1:
            raise ValueError(f"search: diversity {self.diversity}: between 0 (the best) and 1 (the most varied)")
        if self.rerank is not None and (len(terms) != 1 or terms[0].kind not in ("words", "image")):
            raise ValueError(
                "search: rerank compares words with pictures, or one picture with captions, not "
                f"{' and '.join(term.kind for term in terms)}; give only words or a picture, or leave rerank out"
            )
        if self.rerank is not None and self.diversity:
            raise ValueError("search: rerank and diversity are two orders of the same rows; ask for one")
        if self.rerank_depth < 1:
            raise ValueError(f"search: rerank_depth {self.rerank_depth}: give at least 1")
        if self.full_text and any(term.kind != "words" or term.weight <= 0 for term in terms):
            raise ValueError("search: full text takes words alone; leave the other terms out, or ask for hybrid")
        if self.hybrid and not self.asked_words():
            raise ValueError("search: hybrid needs words; give some, or leave hybrid out")
        return terms

    def asked_words(self) -> str:
        """All words with a positive weight, for a full-text search."""
        return " ".join(term.words for term in (Term(words=self.words), *self.terms) if term.words and term.weight > 0)

    def asked_columns(self) -> list[str]:
        """The vector columns that the query names."""
        return [name.strip() for name in (self.vector_column or "").split(",") if name.strip()]


def _check_terms(terms: tuple[Term, ...]) -> None:
    for term in terms:
        if not math.isfinite(term.weight) or term.weight == 0:
            raise ValueError(f"search: weight {term.weight} of {term.kind}: give a number other than 0")
        if term.vector is not None:
            numbers = np.asarray(term.vector, np.float64)
            if not (np.isfinite(numbers).all() and numbers.any()):
                raise ValueError("search: vector: needs finite numbers that are not all 0")
    if not any(term.weight > 0 for term in terms):
        asked = f"only what to be unlike ({', '.join(term.kind for term in terms)})" if terms else "nothing"
        raise ValueError(f"search: asks for {asked}; give words, an image, a row to be like, or a vector")
