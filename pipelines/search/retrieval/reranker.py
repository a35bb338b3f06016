"""Reranking: reorders hits by a cross-encoder, which reads the query and each hit together."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.cross import CrossEncoder
from encoders.cross import load as load_cross_encoder
from encoders.images import open_image
from encoders.protocol import EncoderOptions
from pipelines.rows.contract import CAPTION
from pipelines.rows.hits import RERANK
from pipelines.search.retrieval.queries import Term
from pipelines.sources.row_pictures import ReadPictures, decoded


class Reranker:
    """A cross-encoder for the hits of a table's searches. Threads may share it; it serves one at a time.

    Args:
        spec: a model directory or a hub id; see `encoders.cross`.
        read: reads the rows' pictures.
        options: precision, device and batch size of the model; None uses the defaults.
    """

    def __init__(self, spec: str, read: ReadPictures, options: EncoderOptions | None = None) -> None:
        self._model: CrossEncoder = load_cross_encoder(spec, options)
        self._read = read
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    def order(self, rows: pa.Table, terms: Sequence[Term], depth: int) -> pa.Table:
        """The rows, best match first, with their scores as the column `rerank`.

        Args:
            rows: hits, with `CAPTION`, `IMAGE_URI` and perhaps `THUMBNAIL`, best first.
            terms: the query's terms: only words, or only a picture.
            depth: number of first rows to reorder, independent of the requested page.

        Returns:
            The rows that the model could read, best first. The others follow in their original order, without a score.

        Raises:
            ImageError: the query's picture cannot be decoded.
        """
        term, best = terms[0], rows.slice(0, depth)
        read = self._by_words(best, term.words) if term.words else self._by_picture(best, term.image or b"")
        scores = np.concatenate([read, np.full(rows.num_rows - best.num_rows, np.nan)])
        keys = np.where(np.isnan(scores), -np.inf, scores)
        order = np.argsort(-keys, kind="stable")
        column = pa.array(scores[order], mask=np.isnan(scores[order]))
        rows = rows.drop_columns([RERANK]) if RERANK in rows.column_names else rows
        return rows.take(pa.array(order)).add_column(min(2, rows.num_columns), RERANK, column)

    def _by_words(self, rows: pa.Table, words: str) -> NDArray[np.float64]:
        pictures = decoded(rows, self._read)
        return self._scores([(row, picture, words) for row, picture in enumerate(pictures) if picture], rows.num_rows)

    def _by_picture(self, rows: pa.Table, data: bytes) -> NDArray[np.float64]:
        picture = open_image(data)
        captions = rows[CAPTION].to_pylist()
        return self._scores([(row, picture, text) for row, text in enumerate(captions) if text], rows.num_rows)

    def _scores(self, pairs: list, rows: int) -> NDArray[np.float64]:
        """(rows,) a score per row; NaN if there was nothing to read."""
        scores = np.full(rows, np.nan)
        if pairs:
            places, pictures, texts = zip(*pairs, strict=True)
            with self._lock:
                scores[list(places)] = self._model.score(pictures, texts)
        return scores
