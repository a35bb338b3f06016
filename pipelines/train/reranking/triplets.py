"""The training pairs of a cross-encoder: rows, and for each row a picture and a caption that are not its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from encoders.digest import digest_bytes, digest_json
from pipelines.rows.contract import CAPTION, IMAGE_URI, ITEM_ID, ROW_ID
from pipelines.tables.joins import RowIndex, hashed, places_of
from pipelines.tables.splitting import OFFSET
from pipelines.train.mining.mined import Mined

if TYPE_CHECKING:
    import lance

Index = NDArray[np.int64]
_TRIES = 16


@dataclass(frozen=True, kw_only=True)
class Triplets:
    """Rows that have a picture and a caption, by their places 0 … n − 1 in the table's order.

    Attributes:
        dataset: the table.
        offsets: (n,), offsets of the rows in the table.
        item: (n,), code of the item.
        text: (n,), code of the caption.
        training: places of the training rows.
        held_out: places of the validation rows, whose items are not among the training rows.
        pictures: mined rows whose picture does not match a row's caption; see `Negatives`.
        captions: mined rows whose caption does not match a row's picture.
        identity: digest of all of these.
    """

    dataset: lance.LanceDataset
    offsets: Index
    item: Index
    text: Index
    training: Index
    held_out: Index
    pictures: Negatives
    captions: Negatives
    identity: str

    @property
    def mined(self) -> float:
        """The share of the training rows' negatives that are mined."""
        found = [part.counts[self.training] > 0 for part in (self.pictures, self.captions)]
        return float(np.mean(found)) if len(self.training) else 0.0

    def negatives_of(self, places: Index, epoch: int, seed: int) -> tuple[Index, Index]:
        """For each place, a place with a wrong picture and one with a wrong caption: mined if any, else random.

        Args:
            places: (m,), places of the rows.
            epoch: number of the epoch, each of which draws anew; −1 for the held-out rows.
            seed: seed of the draw.

        Returns:
            Places (m,) of the pictures, and places (m,) of the captions.
        """
        side = self.held_out if epoch < 0 else self.training
        rng = np.random.default_rng([seed, epoch + 1, int(places[0]) if len(places) else 0])
        drawn = [part.draw(places, rng) for part in (self.pictures, self.captions)]
        picture, caption = (np.where(found < 0, self._by_chance(places, side, rng), found) for found in drawn)
        return picture, caption

    def _by_chance(self, places: Index, side: Index, rng: np.random.Generator) -> Index:
        """Random places of the same side with another item and another caption; after 16 tries, the last draw."""
        found = rng.choice(side, len(places))
        for _ in range(_TRIES):
            same = (self.item[found] == self.item[places]) | (self.text[found] == self.text[places])
            if not same.any():
                break
            found = np.where(same, rng.choice(side, len(places)), found)
        return found


@dataclass(frozen=True)
class Negatives:
    """Mined negatives of each place, ragged.

    Attributes:
        places: (m,), places of the negatives, grouped by anchor.
        starts: (n + 1,), where each anchor's negatives begin.
    """

    places: Index
    starts: Index

    @property
    def counts(self) -> Index:
        """Number of negatives of each place, (n,)."""
        return np.diff(self.starts)

    def draw(self, anchors: Index, rng: np.random.Generator) -> Index:
        """A random negative of each anchor, −1 if it has none."""
        counts = self.counts[anchors]
        at = self.starts[anchors] + (rng.random(len(anchors)) * counts).astype(np.int64)
        found = np.full(len(anchors), -1, np.int64)
        found[counts > 0] = self.places[at[counts > 0]]
        return found


def read_triplets(
    dataset: lance.LanceDataset, where: str | None, mined: Mined | None, held_out: float, seed: int, table: str
) -> Triplets:
    """The rows of a table that have a picture and a caption, split by item, with their mined negatives.

    A mined negative on the other side of the split is dropped, because training must not see validation rows.

    Args:
        dataset: the table.
        where: SQL filter of the rows.
        mined: the mined negatives; None uses only random ones.
        held_out: share of the items that validate, 0 to 1.
        seed: seed of the split.
        table: name of the table, for messages.

    Raises:
        ValueError: fewer than four items have a picture and a caption, or the negatives belong to another table's rows.
    """
    condition = f"{CAPTION} IS NOT NULL AND {IMAGE_URI} IS NOT NULL" + (f" AND ({where})" if where else "")
    rows = dataset.scanner(columns=[OFFSET, ITEM_ID, CAPTION], filter=condition).to_table()
    item, text = hashed(rows[ITEM_ID]), hashed(rows[CAPTION])
    items = np.unique(item)
    if len(items) < 4:
        raise ValueError(f"table {table}: {len(items)} items with a picture and a caption; a cross-encoder needs four")
    count = max(1, round(held_out * len(items))) if held_out else 0
    chosen = np.random.default_rng(seed).permutation(items)[:count]
    is_held_out = np.isin(item, chosen)
    offsets = rows[OFFSET].to_numpy().astype(np.int64)
    pictures, captions = _mined(mined, dataset, offsets, is_held_out)
    if mined is not None and not (len(pictures.places) or len(captions.places)):
        raise ValueError(
            f"negatives: none of the {mined.negatives.num_rows} mined from {mined.table} are of rows of table {table}; "
            "mine this table, or one of the same corpus with the same keys"
        )
    return Triplets(
        dataset=dataset,
        offsets=offsets,
        item=item,
        text=text,
        training=np.flatnonzero(~is_held_out),
        held_out=np.flatnonzero(is_held_out),
        pictures=pictures,
        captions=captions,
        identity=digest_json(
            [int(dataset.version), where, held_out, *(digest_bytes(p.places.tobytes()) for p in (pictures, captions))]
        ),
    )


def _mined(
    mined: Mined | None, dataset: lance.LanceDataset, offsets: Index, is_held_out: NDArray[np.bool_]
) -> tuple[Negatives, Negatives]:
    """The mined pictures and the mined captions of each place."""
    if mined is None:
        none = Negatives(np.zeros(0, np.int64), np.zeros(len(offsets) + 1, np.int64))
        return none, none
    index = RowIndex(dataset)
    anchor = places_of(index.find(mined.negatives[ROW_ID]), offsets)
    negative = places_of(index.find(mined.negatives["negative_row_id"]), offsets)
    good = (anchor >= 0) & (negative >= 0)
    good[good] = is_held_out[anchor[good]] == is_held_out[negative[good]]
    direction = np.array(mined.negatives["direction"].to_pylist())
    chosen = [good & (direction == name) for name in ("text_to_image", "image_to_text")]
    pictures, captions = (_by_anchor(anchor, negative, part, len(offsets)) for part in chosen)
    return pictures, captions


def _by_anchor(anchor: Index, negative: Index, chosen: NDArray[np.bool_], places: int) -> Negatives:
    anchor, negative = anchor[chosen], negative[chosen]
    order = np.argsort(anchor, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(anchor, minlength=places))])
    return Negatives(negative[order], starts.astype(np.int64))
