"""The best candidates of many anchors, kept while the gallery is streamed.

A list is one int64 array (anchors, depth) that packs score and place into one number. The order is therefore total
(score, then the lower place) and does not depend on how the gallery was cut.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_EMPTY = torch.iinfo(torch.int64).min
_LOW = (1 << 32) - 1
_CELLS = 1 << 22  # scores per product: 16 MiB


class TopLists:
    """The `depth` best of the rows offered so far, for each of `n` anchors."""

    def __init__(self, n: int, depth: int) -> None:
        self._keys = torch.full((n, depth), _EMPTY, dtype=torch.int64)
        self._least = torch.full((n,), -torch.inf)
        self._depth = depth

    def offer(self, anchors: torch.Tensor, queries: torch.Tensor, gallery: torch.Tensor, places: torch.Tensor) -> None:
        """Compare some anchors with some rows, and keep the rows that are among the best.

        Args:
            anchors: int64 (a,), indices of the anchors' lists.
            queries: float32 (a, dim), the anchors' vectors.
            gallery: float32 (g, dim), the rows' vectors.
            places: int64 (g,), the rows' places, below 2**32.
        """
        wide = max(1, min(len(gallery), 4_096))
        tall = max(1, _CELLS // wide)
        for top in range(0, len(anchors), tall):
            for left in range(0, len(gallery), wide):
                scores = queries[top : top + tall] @ gallery[left : left + wide].T
                self._take(anchors[top : top + tall], scores, places[left : left + wide])

    def result(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores (n, depth), best first, and places (n, depth); −inf and −1 if fewer rows were offered."""
        empty = self._keys == _EMPTY
        scores = torch.where(empty, -torch.inf, _scores(self._keys))
        places = torch.where(empty, -1, _LOW - (self._keys & _LOW))
        return scores.numpy(), places.numpy()

    def _take(self, anchors: torch.Tensor, scores: torch.Tensor, places: torch.Tensor) -> None:
        """Insert the scores that reach the end of a list; most do not, and cost one comparison."""
        touched = torch.nonzero(scores.amax(1) >= self._least[anchors]).squeeze(1)
        if len(touched) == 0:
            return
        if len(touched) < len(anchors):
            anchors, scores = anchors[touched], scores[touched]
        row, column = torch.nonzero(scores >= self._least[anchors, None], as_tuple=True)
        counts = torch.bincount(row, minlength=len(anchors))
        most = int(counts.max())
        if most > self._depth:
            new = _keys(scores, places[None, :])
        else:
            slot = torch.arange(len(row)) - torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
            new = torch.full((len(anchors), most), _EMPTY, dtype=torch.int64)
            new[row, slot] = _keys(scores[row, column], places[column])
        merged = torch.cat([self._keys[anchors], new], 1)
        best = torch.topk(merged, self._depth, dim=1, sorted=True).values
        self._keys[anchors] = best
        last = best[:, -1]
        self._least[anchors] = torch.where(last == _EMPTY, -torch.inf, _scores(last))


def _keys(scores: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Score and place as one int64 that orders by score, then by the lower place."""
    bits = (scores + 0.0).view(torch.int32)  # + 0 makes −0 and 0 equal
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return (ordered << 32) | (_LOW - places)


def _scores(keys: torch.Tensor) -> torch.Tensor:
    """The scores in some keys, the inverse of `_keys`."""
    ordered = (keys >> 32).to(torch.int32)
    return torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
