"""Which held-out rows were seen in training: by an equal caption, an equal picture, or a very similar picture."""

from __future__ import annotations

import unicodedata
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.rows.contract import CAPTION, IMAGE_VECTOR, ROW_ID
from pipelines.tables.filters import check_filter, quote
from pipelines.tables.joins import hashed
from pipelines.tables.splitting import OFFSET
from pipelines.train.evaluation.selection import Gallery, Index, read_vectors

if TYPE_CHECKING:
    import lance

_SAME = 1 - 1e-5
_QUERIES_AT_ONCE = 1_024
_LISTED_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Held-out rows that were seen in training.

    Attributes:
        rows: number of held-out rows.
        train_rows: number of training rows.
        same_caption: rows whose caption occurs in training, ignoring case, width and spaces.
        same_picture: rows whose image vector equals one of training.
        near_picture: rows whose image vector is not equal to, but at least as near as the limit to one of training.
        leaked: ids of the rows counted in any of these.
    """

    rows: int
    train_rows: int
    same_caption: int
    same_picture: int
    near_picture: int
    leaked: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON-ready data."""
        return {**{k: v for k, v in asdict(self).items() if k != "leaked"}, "leaked": len(self.leaked)}


def find_leakage(
    held_out: lance.LanceDataset,
    where: str | None,
    train: lance.LanceDataset,
    train_where: str | None,
    *,
    near: float = 0.95,
    captions: bool = True,
    block_rows: int = 8_192,
) -> Leakage:
    """Compare held-out rows with training rows; both are streamed.

    Args:
        held_out: the table to evaluate.
        where: SQL filter of the held-out rows.
        train: the table that was trained on, with vectors of the same encoder; may be the same table.
        train_where: SQL filter of the training rows.
        near: least cosine at which two pictures count as near-duplicates.
        captions: whether an equal caption counts (labels that many items share are no leak).
        block_rows: training rows in memory at once.

    Raises:
        ValueError: a table cannot apply its filter, or the image vectors have different dimensions.
    """
    mine, mine_offsets, mine_ids = _read(held_out, where)
    theirs, their_offsets, _ = _read(train, train_where)
    same_words = np.isin(mine, theirs) if captions else np.zeros(len(mine), np.bool_)
    best = _nearest(held_out, mine_offsets, train, their_offsets, block_rows)
    same, close = best >= _SAME, (best >= near) & (best < _SAME)
    leaked = np.flatnonzero(same_words | same | close)
    return Leakage(
        rows=len(mine),
        train_rows=len(theirs),
        same_caption=int(same_words.sum()),
        same_picture=int(same.sum()),
        near_picture=int(close.sum()),
        leaked=tuple(mine_ids[i] for i in leaked.tolist()),
    )


def without(where: str | None, leaked: tuple[str, ...]) -> str | None:
    """A filter that also excludes the leaked rows."""
    if not leaked:
        return where
    listed = (leaked[i : i + _LISTED_AT_ONCE] for i in range(0, len(leaked), _LISTED_AT_ONCE))
    refused = " AND ".join(f"{ROW_ID} NOT IN ({', '.join(map(quote, part))})" for part in listed)
    return f"({where}) AND {refused}" if where else refused


def normalised(caption: str | None) -> str | None:
    """A caption without differences that a reader would ignore: case, width and spaces.

    >>> normalised("  A　Red ＣＡＲ ")
    'a red car'
    """
    return None if caption is None else " ".join(unicodedata.normalize("NFKC", caption).casefold().split())


def _read(dataset: lance.LanceDataset, where: str | None) -> tuple[Index, Index, list[str]]:
    """Codes of the captions, offsets, and ids of the selected rows that have a picture."""
    if where is not None:
        check_filter(where, dataset)
    condition = f"{IMAGE_VECTOR} IS NOT NULL" + (f" AND ({where})" if where else "")
    found = dataset.scanner(columns=[ROW_ID, CAPTION, OFFSET], filter=condition).to_table()
    codes = hashed([normalised(caption) for caption in found[CAPTION].to_pylist()])
    return codes, found[OFFSET].to_numpy().astype(np.int64), found[ROW_ID].to_pylist()


def _nearest(
    held_out: lance.LanceDataset, mine: Index, train: lance.LanceDataset, theirs: Index, block_rows: int
) -> NDArray[np.float32]:
    """Cosine of each held-out picture to its nearest training picture, float32 (n,)."""
    vectors = read_vectors(held_out, mine, IMAGE_VECTOR)
    best = np.full(len(mine), -1.0, np.float32)
    for _, block in Gallery(train, theirs, IMAGE_VECTOR, block_rows)():
        if block.shape[1] != vectors.shape[1]:
            raise ValueError("leakage: the two tables hold image vectors of different encoders; embed both with one")
        for low in range(0, len(vectors), _QUERIES_AT_ONCE):
            part = slice(low, low + _QUERIES_AT_ONCE)
            best[part] = np.maximum(best[part], (vectors[part] @ block.T).max(axis=1))
    return best
