"""What can be asked of a table: words, pictures, rows and vectors, alone or composed, towards or away from each."""

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
        like: a row id.
        vector: of the searched column's length.
        weight: how much it counts; below 0 leads away from it.
    """

    words: str | None = None
    image: bytes | None = None
    like: str | None = None
    vector: tuple[float, ...] | None = None
    weight: float = 1.0

    @property
    def kind(self) -> Kind:
        """Which of the four it is.

        Raises:
            ValueError: it is none of them, or several.
        """
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"search: a term is one of {', '.join(KINDS)}; got {' and '.join(given) or 'none'}")
        return given[0]


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is asked. `words`, `image`, `like` and `vector` together make one composed query, as do more `terms`.

    Attributes:
        words: a caption, or the words of a full-text search.
        image: a picture's bytes.
        like: a row id.
        vector: of the searched column's length.
        terms: more of the same, with weights.
        k: how many rows.
        skip: how many of the best rows to leave out first, for the next page.
        where: an SQL filter, applied before the search.
        columns: columns to return besides the id and the score; None for all but vectors and thumbnails.
        vector_column: the vectors to search, `a,b` for two whose rankings are fused; None chooses.
        full_text: search the captions' words (BM25) and not the vectors.
        hybrid: fuse the ranking by vectors with that by the captions' words.
        fusion: of rankings by `rank` (reciprocal ranks) or by `score` (each ranking's scores on a scale of 0 to 1).
        fusion_weights: the say of each ranking, in the order of the columns, the captions' words last; None: the same.
        diversity: from 0 (the best rows) to 1 (rows unlike those before them): maximal marginal relevance.
        distinct: at most one row an item.
        rerank: a cross-encoder (a model directory or a hub id) that orders the best rows again.
        rerank_depth: how many of them.
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
        """Every part of the query.

        Raises:
            ValueError: there is none, none that leads towards something, or what was asked for is out of range.
        """
        own = [Term(**{kind: getattr(self, kind)}) for kind in KINDS if getattr(self, kind) is not None]
        terms = (*own, *self.terms)
        _check_terms(terms)
        if self.k < 1:
            raise ValueError(f"search: k {self.k}: at least 1")
        if self.skip < 0:
            raise ValueError(f"search: skip {self.skip}: at least 0")
        if self.fusion_weights is not None and not all(0 < w < math.inf for w in self.fusion_weights):
            raise ValueError(f"search: fusion_weights {list(self.fusion_weights)}: numbers above 0")
        if not 0 <= self.diversity <= 1:
            raise ValueError(f"search: diversity {self.diversity}: between 0 (the best) and 1 (the most varied)")
        if self.rerank is not None and (len(terms) != 1 or terms[0].kind not in ("words", "image")):
            raise ValueError(
                "search: rerank compares words with pictures, or one picture with captions, not "
                f"{' and '.join(term.kind for term in terms)}; give words or a picture alone, or leave rerank out"
            )
        if self.rerank is not None and self.diversity:
            raise ValueError("search: rerank and diversity are two orders of the same rows; ask for one")
        if self.rerank_depth < 1:
            raise ValueError(f"search: rerank_depth {self.rerank_depth}: at least 1")
        if self.full_text and any(term.kind != "words" or term.weight <= 0 for term in terms):
            raise ValueError("search: full text takes words alone; leave the other terms out, or ask for hybrid")
        if self.hybrid and not self.asked_words():
            raise ValueError("search: hybrid needs words; give some, or leave hybrid out")
        return terms

    def asked_words(self) -> str:
        """All words that the query leads towards, for a full-text search."""
        return " ".join(term.words for term in (Term(words=self.words), *self.terms) if term.words and term.weight > 0)

    def asked_columns(self) -> list[str]:
        """The vector columns that were named."""
        return [name.strip() for name in (self.vector_column or "").split(",") if name.strip()]


def _check_terms(terms: tuple[Term, ...]) -> None:
    for term in terms:
        if not math.isfinite(term.weight) or term.weight == 0:
            raise ValueError(f"search: weight {term.weight} of {term.kind}: a number other than 0")
        if term.vector is not None:
            numbers = np.asarray(term.vector, np.float64)
            if not (np.isfinite(numbers).all() and numbers.any()):
                raise ValueError("search: vector: needs finite numbers that are not all 0")
    if not any(term.weight > 0 for term in terms):
        asked = f"only what to be unlike ({', '.join(term.kind for term in terms)})" if terms else "nothing"
        raise ValueError(f"search: asks for {asked}; give words, an image, a row to be like, or a vector")
